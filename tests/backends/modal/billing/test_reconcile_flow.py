"""What the local Modal server bills for runs, brought back into their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_experiments import ModalBackend, run_experiment
from ml_experiments.backends.modal.billing.idle import find_idle_apps
from ml_experiments.runner.run import submit_experiment
from ml_experiments.runs.folder import RunFolder
from modal_emulator import Emulator
from tests.support.modal_experiments import Counts
from tests.support.modal_runs import Recorder, folder_of, run_command


def test_runs_beyond_the_tags_of_their_app_are_billed_and_not_idle(
    modal_emulator: Emulator, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.backends.modal.app_pool._MAX_TAGGED_RUNS", 1)
    recorder = Recorder()
    with ModalBackend() as backend:
        short = {"backend": backend, "observer": Recorder(), "gpu": "t4"}
        results = [run_experiment(Counts, {"seconds": 1}, **short) for _ in range(2)]
        handle = submit_experiment(
            Counts, {"seconds": 30}, backend=backend, observer=recorder, gpu="t4"
        )
        assert recorder.printed.wait(60)
        assert find_idle_apps(runs_dir) == []
        handle.cancel()
    done = run_command(modal_emulator, tmp_path, "costs", "reconcile", "--this-hour", "--json")
    billed = json.loads(done.stdout)["billed"]
    assert set(billed) >= {*(result.run_id for result in results), handle.run_id}


def test_runs_get_what_the_server_has_billed_for_the_seconds_of_their_containers(
    modal_emulator: Emulator, runs_dir: Path, tmp_path: Path
) -> None:
    with ModalBackend() as backend:
        results = [
            run_experiment(Counts, {"seconds": s}, backend=backend, observer=Recorder(), gpu="t4")
            for s in (1, 2)
        ]
    command = ("costs", "reconcile", "--this-hour", "--json")
    done = run_command(modal_emulator, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    billed = json.loads(done.stdout)["billed"]
    assert set(billed) == {result.run_id for result in results}
    first, second = (billed[result.run_id] for result in results)
    # both ran in one app, whose bill they share as their estimates do
    estimates = [result.cost["estimate_usd"] for result in results]
    assert second / first == pytest.approx(estimates[1] / estimates[0])
    # the container has started and waited too
    assert first + second >= sum(estimates) * 0.99
    folder: RunFolder = folder_of(results[0])
    assert folder.read_result().cost["billed_usd"] == pytest.approx(first)
    done = run_command(modal_emulator, tmp_path, "costs", "--by", "gpu")
    assert done.stdout.splitlines()[1].split()[-1] == "billed"
