"""An observer that raises ends neither its run nor the next one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from tests.support.experiments import Ends, Fit, Plain


class Fails(Observer):
    """Raises in what it's told to, and counts what it hears."""

    def __init__(self, *fails_in: str) -> None:
        self.fails_in = fails_in
        self.heard: list[str] = []

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        if what in self.fails_in:
            raise RuntimeError("the display is broken")

    def started(self, spec: RunSpec) -> None:
        self._hear("started")

    def log(self, spec: RunSpec, data: bytes) -> None:
        self._hear("log")

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        self._hear("progress")

    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        self._hear("metrics")

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self._hear("finished")


@pytest.mark.parametrize("backend", ["local", "debug"])
@pytest.mark.parametrize("method", ["started", "progress", "metrics", "finished"])
def test_a_run_goes_on_without_an_observer_that_failed(
    method: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    observer = Fails(method, "finished")
    with caplog.at_level(logging.WARNING, "ml_experiments.execution.observer"):
        result = run_experiment(Fit, {"steps": 3}, backend=backend, observer=observer)
    assert result.status is RunStatus.SUCCESS
    assert observer.heard[-1] == "finished"
    assert observer.heard.count(method) == 1
    (told,) = [r for r in caplog.records if r.name == "ml_experiments.execution.observer"]
    assert f"Fails.{method}() failed (RuntimeError: the display is broken)" in told.getMessage()
    assert result.run_id in told.getMessage()


def test_another_run_gets_its_own_observer_again() -> None:
    observer = Fails("log")
    with LocalBackend() as backend:
        for _ in range(2):
            run_experiment(Ends, {"how": "not_utf8"}, backend=backend, observer=observer)
    assert observer.heard.count("log") == 2


def test_a_worker_that_supervision_has_left_is_not_given_to_the_next_run(runs_dir: Path) -> None:
    with LocalBackend() as backend:
        prepared = prepare_run(Ends, {"how": "partial_results"}, backend=backend, timeout_s=3.0)
        folder = RunFolder.create(runs_dir, prepared.spec, Manifest(), Redactor(()))
        left = backend.submit(prepared, folder, Fails("started"))
        with pytest.raises(RuntimeError, match="the display is broken"):
            left.result(60)
        result = run_experiment(Plain, {"mine": 1}, backend=backend)
    assert result.run_id != prepared.spec.run_id
    assert result.results["config"] == {"mine": 1}
