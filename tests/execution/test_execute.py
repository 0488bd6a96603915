"""What comes of a run when its experiment leaves things in a bad state."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import LocalBackend, run_experiment, submit_experiment
from ml_experiments.runs.result import ErrorKind, RunStatus
from tests.support import difficult_experiments as difficult
from tests.support.modal_runs import Recorder


def test_a_damaged_cache_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    result = run_experiment(difficult.reads_a_damaged_cache, {})
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == 0.93


def test_a_broken_gpu_does_not_hide_the_experiments_own_error() -> None:
    result = run_experiment(difficult.BreaksItsGpu, {})
    assert result.error is not None
    assert result.error.kind is ErrorKind.EXPERIMENT
    assert result.error.message == "index 7 is out of bounds"


def test_without_room_for_it_a_result_is_still_free_of_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "planted-04c1d9")
    result = run_experiment(difficult.fills_the_disk, {})
    assert result.error is not None
    assert "File too large" in result.error.message
    assert result.results == {"login": "Bearer <redacted>"}
    assert "planted-04c1d9" not in str(result)


def test_without_room_for_it_an_error_stays_the_experiments_own() -> None:
    result = run_experiment(difficult.fills_the_disk, {"fails": True})
    assert result.error is not None
    assert result.error.message == "an error of its own"


@pytest.mark.parametrize("how", ["return", "exit", "raise"])
def test_a_cancelled_run_is_cancelled_whatever_it_makes_of_that(how: str) -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        handle = submit_experiment(
            difficult.makes_something_of_an_interrupt,
            {"how": how},
            backend=backend,
            observer=recorder,
        )
        assert recorder.printed.wait(60)
        handle.cancel()
        result = handle.result(60)
    assert result.status is RunStatus.CANCELLED
    assert result.results == ("partial" if how == "return" else None)


def test_a_setup_that_does_not_say_what_it_depends_on_is_done_for_each_config() -> None:
    configs: list[dict[str, Any]] = [{"model": "x"}, {"model": "y"}, {"model": "y"}]
    with LocalBackend() as backend:
        results = [
            run_experiment(difficult.Undeclared, config, backend=backend, seed=1).results
            for config in configs
        ]
    assert [loaded for loaded, _ in results] == ["weights of x", "weights of y", "weights of y"]
    assert results[1] != results[2]  # only `setup_fields` lets runs share what was set up


def test_a_class_with_an_init_of_its_own_is_made_for_each_config() -> None:
    with LocalBackend() as backend:
        rates = [
            run_experiment(difficult.KeepsItsConfig, {"lr": lr}, backend=backend).results
            for lr in (0.1, 0.5)
        ]
    assert rates == [0.1, 0.5]


def test_the_debug_backend_hears_an_interrupt_too() -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    result = run_experiment(
        difficult.makes_something_of_an_interrupt, {"how": "return"}, backend="debug"
    )
    assert result.status is RunStatus.CANCELLED


ENDINGS = [("base", "Gone"), ("interrupt", "KeyboardInterrupt"), ("async", "CancelledError")]


@pytest.mark.parametrize(("what", "name"), ENDINGS)
def test_an_ending_that_nobody_asked_for_is_the_experiments_error(what: str, name: str) -> None:
    result = run_experiment(difficult.ends_by, {"what": what})
    assert result.error is not None
    assert (result.status, result.error.kind) == (RunStatus.ERROR, ErrorKind.EXPERIMENT)
    assert result.error.type == name
    assert "difficult_experiments.py" in result.error.traceback


def test_streams_that_a_run_has_closed_work_in_the_next() -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        for _ in range(2):
            result = run_experiment(
                difficult.closes_its_streams, {}, backend=backend, observer=recorder
            )
            assert result.status is RunStatus.SUCCESS, result.error
    assert recorder.lines == b"still there\n" * 2


def test_a_secret_in_results_costs_no_more_than_itself(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "planted-04c1d9")
    result = run_experiment(difficult.returns_a_secret, {})
    assert result.status is RunStatus.SUCCESS, result.error
    array = result.results.pop("<redacted>")
    assert list(result.load(array)) == [0, 1, 2]
    assert result.results == {"text": "<redacted>", "bytes": "<redacted>", "loss": 1}
    assert not [p for p in runs_dir.rglob("*") if "planted" in p.name]
