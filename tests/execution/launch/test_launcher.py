"""Runs in several ranks on this machine, by torch's and Accelerate's own launchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments import LocalBackend, RunHandle, RunResult, run_experiment, submit_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunStatus
from tests.support.launched_experiments import Regression, ends, goes_on, uses_accelerate
from tests.support.modal_runs import Recorder, folder_of
from tests.support.waiting import wait_until

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

QUIET = Observer()
TWO_RANKS: dict[str, Any] = {"launch": "torchrun", "nproc_per_node": 2}

Submit = Callable[..., RunHandle]


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with LocalBackend() as opened:
        yield opened


@pytest.fixture
def submit(backend: LocalBackend) -> Submit:
    def call(experiment: Any, config: dict[str, Any], **options: Any) -> RunHandle:
        asked = {**TWO_RANKS, "observer": QUIET, **options}
        return submit_experiment(experiment, config, backend=backend, **asked)

    return call


def log_of(result: RunResult) -> list[str]:
    return folder_of(result).log_file.read_text().splitlines()


def wait_for_both(folder: RunFolder) -> list[psutil.Process]:
    files = [folder.artifacts_dir / f"pid{rank}.txt" for rank in (0, 1)]
    wait_until(lambda: all(f.exists() and f.read_text() for f in files), "the start of both ranks")
    return [psutil.Process(int(file.read_text())) for file in files]


def weights_of(result: RunResult) -> list[float]:
    return [number for layer in result.results["weights"] for number in layer]


def test_a_training_in_two_ranks_comes_to_the_weights_of_one_process(
    backend: LocalBackend,
) -> None:
    seen = Recorder()
    alone = run_experiment(Regression, backend=backend, seed=5, observer=QUIET)
    ranks = run_experiment(Regression, backend=backend, seed=5, observer=seen, **TWO_RANKS)
    assert (alone.error, ranks.error) == (None, None)
    assert (alone.results["world_size"], ranks.results["world_size"]) == (1, 2)
    assert weights_of(ranks) == pytest.approx(weights_of(alone), abs=1e-12)
    # results, metrics, progress and checkpoints are those of rank 0
    assert ranks.results["rank"] == 0
    assert [entry["metrics"]["step_of_rank"] for entry in ranks.metrics] == [0] * 6
    assert seen.events == [
        "started",
        *(event for n in range(6) for event in (f"metrics at {n}", f"progress {n + 1}/6")),
        "finished: success",
    ]
    folder = folder_of(ranks)
    assert [path.name for path in folder.checkpoint_dir.iterdir()] == ["000001"]
    assert {"import_s", "setup_s", "run_s", "total_s"} <= set(ranks.timings)
    # both were seeded alike, and as the single process
    [drawn] = [line for line in log_of(alone) if line.startswith("trained")]
    assert sorted(log_of(ranks)) == [f"[rank0] {drawn}", f"[rank1] {drawn}"]
    # as far as it was printed, it was seen live
    assert b"[rank1] trained" in seen.lines


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("is_killed", ErrorKind.HOST_OOM, "rank 1: the worker process was killed, most often"),
        (
            "exits",
            ErrorKind.EXPERIMENT,
            "rank 1: the experiment ended its process with exit code",
        ),
    ],
)
def test_a_rank_that_dies_is_named(submit: Submit, how: str, kind: ErrorKind, message: str) -> None:
    handle = submit(ends, {"how": how})
    result = handle.result(60)
    assert result.error is not None
    assert result.error.kind is kind
    assert result.error.message.startswith(message)


def test_a_cancel_reaches_all_ranks_and_nothing_is_left(submit: Submit) -> None:
    handle = submit(ends, {"how": "sleeps"})
    processes = wait_for_both(handle.folder)
    handle.cancel()
    result = handle.result(30)
    assert (result.status, result.error) == (RunStatus.CANCELLED, None)
    # each could save what it had, though the other one had ended
    for rank in (0, 1):
        saved = handle.folder.artifacts_dir / f"saved{rank}.txt"
        assert saved.read_text() == "KeyboardInterrupt"
    assert not any(process.is_running() for process in processes)


def test_a_soft_timeout_reaches_all_ranks(submit: Submit) -> None:
    handle = submit(ends, {"how": "sleeps"}, timeout_s=6)
    result = handle.result(30)
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    for rank in (0, 1):
        # on a machine that is very busy, it may be due before the experiment begins
        if (handle.folder.artifacts_dir / f"pid{rank}.txt").exists():
            saved = handle.folder.artifacts_dir / f"saved{rank}.txt"
            assert saved.read_text() == "SoftTimeout"


def test_a_rank_that_raises_ends_the_run_which_is_resumed_from_one_checkpoint(
    backend: LocalBackend, submit: Submit
) -> None:
    handle = submit(goes_on, {"fails": True})
    result = handle.result(60)
    error = result.error
    assert error is not None
    assert error.kind is ErrorKind.EXPERIMENT
    assert (error.type, error.message) == ("ArithmeticError", "rank 1: a bad batch")
    rank, first, place, *_, last = error.traceback.splitlines()
    assert (rank, first) == ("rank 1:", "Traceback (most recent call last):")
    assert "launched_experiments.py" in place
    assert last == "ArithmeticError: a bad batch"
    assert {"[rank0] here is 0 of 2", "[rank1] without a newline"} <= set(log_of(result))
    # rank 0 had saved a checkpoint before rank 1 asked for the one to go on from
    found = handle.folder.artifacts_dir / "found.txt"
    assert found.read_text() == "None"
    resume_run(handle.folder, backend=backend, observer=QUIET).result(60)
    assert found.read_text() == "[0]"


def test_accelerate_starts_a_rank_for_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    # what `accelerate config` has written for this user is no part of the run
    config = tmp_path / "accelerate" / "default_config.yaml"
    config.parent.mkdir()
    config.write_text("compute_environment: LOCAL_MACHINE\nmixed_precision: bf16\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with LocalBackend() as backend:
        result = run_experiment(
            uses_accelerate, backend=backend, launch="accelerate", observer=QUIET
        )
    assert result.error is None
    expected = {"total": 3, "processes": 2, "precision": "no", "gpus": "4,5"}
    assert result.results == expected
