"""How often checkpoints are stored on the volume."""

from __future__ import annotations

import queue
import threading

import modal
import pytest

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.container.checkpoint_commits import CheckpointCommits
from ml_experiments.backends.modal.mounts import RUNS_VOLUME
from ml_experiments.runner.run import submit_experiment
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.modal_runs import Recorder
from tests.support.resumable_experiments import SavesAndWaits
from tests.support.waiting import wait_until


def test_the_first_is_stored_at_once_and_those_soon_after_together() -> None:
    stored: queue.Queue[None] = queue.Queue()
    with CheckpointCommits(lambda: stored.put(None), interval_s=0.05) as commits:
        commits.checkpoint_saved()
        stored.get(timeout=10)
        for _ in range(20):
            commits.checkpoint_saved()
        stored.get(timeout=10)
    assert stored.qsize() <= 1  # one for all that came while the interval lasted


def test_within_the_interval_nothing_is_stored_again_and_the_end_does_not_wait_for_it() -> None:
    stored: queue.Queue[None] = queue.Queue()
    with CheckpointCommits(lambda: stored.put(None), interval_s=3600) as commits:
        commits.checkpoint_saved()
        stored.get(timeout=10)
        commits.checkpoint_saved()
    assert stored.empty()


def test_the_end_waits_for_a_commit_that_has_begun() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def commit() -> None:
        began.set()
        go_on.wait(10)
        ended.set()

    with CheckpointCommits(commit) as commits:
        commits.checkpoint_saved()
        assert began.wait(10)
        go_on.set()
    assert ended.is_set()


@pytest.mark.slow
def test_a_checkpoint_is_on_the_volume_while_the_run_goes_on() -> None:
    recorder = Recorder()
    # a server that commits nothing by itself
    with (
        Emulator(commit_every_s=3600) as emulator,
        connected(emulator),
        ModalBackend() as backend,
    ):
        handle = submit_experiment(SavesAndWaits, {}, backend=backend, observer=recorder)
        volume = modal.Volume.from_name(RUNS_VOLUME)
        place = f"/{handle.run_id}/checkpoints/000001"

        def files() -> set[str]:
            try:
                return {entry.path.rpartition("/")[2] for entry in volume.listdir(place)}
            except (modal.exception.NotFoundError, FileNotFoundError):
                return set()

        wait_until(lambda: files() == {"state.json", "checkpoint.json"}, "the commit")
        assert handle.future is not None
        assert not handle.future.done()
        handle.cancel()
        assert handle.result(60).status == "cancelled"
