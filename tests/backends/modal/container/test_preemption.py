"""A container that is taken away in any phase of a run, and an input that is delivered twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ml_experiments import ModalBackend, run_experiment
from ml_experiments.backends.modal.run_handle import ModalRunHandle, OpenApp
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from modal_emulator import Emulator
from tests.support.modal_experiments import Phases
from tests.support.modal_runs import Recorder, folder_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backend(modal_emulator_server: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


class Preempts(Recorder):
    """Lets the container be taken away once the run is in its slow phase."""

    def __init__(self, emulator: Emulator, after_s: float) -> None:
        super().__init__()
        self._emulator, self._after_s = emulator, after_s

    def log(self, spec: RunSpec, data: bytes) -> None:
        super().log(spec, data)
        if b"in " in data:
            threading.Timer(self._after_s, self._preempt).start()

    def _preempt(self) -> None:
        for container in self._emulator.containers():
            if container.running_input_ids:
                self._emulator.preempt(container.task_id, grace_s=20)


@pytest.mark.parametrize(
    ("phase", "executed"),
    [("setup", 2), ("run", 2), ("result", 1), ("end", 1)],
    ids=["set-up", "run", "result writing", "result written"],
)
def test_a_run_that_is_preempted_in_any_phase_ends_with_one_whole_result(
    modal_emulator: Emulator, backend: ModalBackend, phase: str, executed: int
) -> None:
    observer = Preempts(modal_emulator, 0)
    result = run_experiment(Phases, {"slow": phase}, backend=backend, observer=observer, gpu="t4")
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == {"value": {"is_": "whole"}, "attempt": executed - 1}
    kinds = [attempt.kind for attempt in result.attempts]
    assert kinds == [ErrorKind.PREEMPTED] * (executed - 1) + [None]
    assert folder_of(result).read_result() == result


def test_a_run_that_is_preempted_while_it_is_stored_ends_with_one_whole_result(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    modal_emulator.delay_rpc("VolumeCommit", 1.5)
    observer = Preempts(modal_emulator, 1)
    config = {"slow": "end", "seconds": 0}
    result = run_experiment(Phases, config, backend=backend, observer=observer, gpu="t4")
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == {"value": {"is_": "whole"}, "attempt": 0}
    assert folder_of(result).read_result() == result


def test_an_input_that_is_delivered_again_is_answered_and_not_executed_again(
    modal_emulator: Emulator, backend: ModalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[tuple[Any, dict[str, Any]]] = []
    see_through = ModalRunHandle.see_through

    def noted(
        handle: ModalRunHandle, open_app: Callable[[], OpenApp], request: dict[str, Any]
    ) -> RunResult:
        def opened() -> OpenApp:
            app = open_app()
            delivered.append((app.function, request))
            return app

        return see_through(handle, opened, request)

    monkeypatch.setattr(ModalRunHandle, "see_through", noted)
    result = run_experiment(Phases, {"slow": ""}, backend=backend, observer=Recorder(), gpu="t4")
    assert result.results == {"value": {"is_": "whole"}, "attempt": 0}
    [(function, request)] = delivered
    again = function.remote(request)
    assert (again["status"], again["results"]) == ("success", result.results_json)
    assert len(again["attempts"]) == 1
