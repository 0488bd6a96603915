"""Attempts at a run on Modal: those that Modal makes, and those that the client asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.runner import retry
from ml_experiments.runner.run import run_experiment, submit_experiment
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from modal_emulator import Emulator
from tests.support.modal_experiments import NeedsMemory, Resumes
from tests.support.modal_runs import (
    WAIT_S,
    Recorder,
    folder_of,
    run_command,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.slow

LARGE = """
import os

def large():
    if os.environ["MODAL_EMULATOR_GPU"] == "T4":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.05)


def test_a_preempted_attempt_is_recorded_and_is_not_one_of_the_retries(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        handle = submit_experiment(
            Resumes, {"steps": 12, "step_s": 0.5}, backend=backend, observer=Recorder(), gpu="t4"
        )
        wait_for_checkpoint(handle.run_id)
        modal_emulator.preempt(grace_s=20)
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    taken, last = result.attempts
    assert (taken.number, taken.kind, taken.gpu) == (1, ErrorKind.PREEMPTED, "T4")
    assert taken.seconds is not None
    assert 0 < taken.seconds < 30
    assert taken.cost_usd is not None
    assert (last.number, last.status, last.kind, last.gpu) == (2, RunStatus.SUCCESS, None, "T4")
    assert last.cost_usd == result.cost["estimate_usd"]
    assert folder_of(result).read_result() == result


def test_a_lost_container_is_replaced_and_the_run_goes_on_from_its_checkpoint(
    modal_emulator: Emulator,
) -> None:
    recorder = Recorder()
    with ModalBackend() as backend:
        handle = submit_experiment(
            Resumes,
            {"steps": 12, "step_s": 0.5},
            backend=backend,
            observer=recorder,
            gpu="t4",
            retries=1,
        )
        wait_for_checkpoint(handle.run_id)
        modal_emulator.kill()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert recorder.events.count("finished: success") == 1
    assert [a.status for a in result.attempts] == ["error", "success"]
    assert result.results["started_at"] > 0
    assert [a.gpu for a in result.attempts] == ["T4", "T4"]


def gpus(result: RunResult) -> list[str | None]:
    return [attempt.gpu for attempt in result.attempts]


@pytest.mark.parametrize(
    ("escalate", "fits", "climbed"),
    [
        (True, "A100-80GB", ["A10", "L40S", "A100-80GB"]),
        ("a100-80gb,h100", "H100", ["A10", "A100-80GB", "H100"]),
    ],
    ids=["larger", "ladder"],
)
def test_a_run_out_of_gpu_memory_goes_on_from_its_checkpoint_on_a_larger_gpu(
    modal_emulator: Emulator, escalate: bool | str, fits: str, climbed: list[str]
) -> None:
    recorder = Recorder()
    with ModalBackend() as backend:
        result = run_experiment(
            NeedsMemory,
            {"fits": [fits]},
            backend=backend,
            observer=recorder,
            gpu="a10g",
            escalate=escalate,
        )
    assert result.status is RunStatus.SUCCESS, result.error
    assert gpus(result) == climbed
    assert [a.kind for a in result.attempts] == [ErrorKind.CUDA_OOM, ErrorKind.CUDA_OOM, None]
    assert result.results["seen"] == [f"{n}-{gpu}" for n, gpu in enumerate(climbed[:-1])]
    assert all(a.cost_usd is not None for a in result.attempts)
    assert recorder.events.count("finished: success") == 1
    assert folder_of(result).read_spec().gpu == fits.lower()


def test_only_gpu_memory_is_a_reason_to_climb_and_the_last_rung_is_the_end(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        bug = run_experiment(
            NeedsMemory,
            {"fits": [], "message": "a bug"},
            backend=backend,
            observer=Recorder(),
            gpu="t4",
            escalate=True,
        )
        full = run_experiment(
            NeedsMemory,
            {"fits": []},
            backend=backend,
            observer=Recorder(),
            gpu="t4",
            escalate="l4",
            retries=3,
        )
    assert (bug.status, gpus(bug)) == (RunStatus.ERROR, ["T4"])
    assert (full.status, gpus(full)) == (RunStatus.ERROR, ["T4", "L4"])
    assert full.error is not None
    assert full.error.kind is ErrorKind.CUDA_OOM


@pytest.mark.parametrize("message", ["CUDA out of memory.", "std::bad_alloc"])
def test_a_run_out_of_memory_on_this_machine_goes_on_on_modal(
    modal_emulator: Emulator, message: str
) -> None:
    result = run_experiment(
        NeedsMemory,
        {"fits": ["L4"], "message": message},
        observer=Recorder(),
        escalate_to="t4",
        escalate="l4",
    )
    here, *there = result.attempts
    assert here.kind in (ErrorKind.CUDA_OOM, ErrorKind.HOST_OOM)
    assert "Modal" not in here.place
    if message.startswith("CUDA"):
        assert result.status is RunStatus.SUCCESS, result.error
        assert [a.gpu for a in there] == ["T4", "L4"]
        assert result.results["seen"] == ["0-none", "1-T4"]
    else:  # on Modal, lack of the container's own memory is no reason
        assert [a.gpu for a in there] == ["T4"]
    folder = folder_of(result)
    assert folder.read_spec().backend == "modal"
    log = folder.log_file.read_text()
    assert log.index("on none") < log.index("--- attempt 2") < log.index("on T4")
    assert log.count("--- attempt 2") == 1
    assert [m["metrics"]["attempt"] for m in folder.read_metrics()] == list(
        range(len(result.attempts))
    )


def test_the_command_takes_a_ladder_or_none_and_goes_to_modal_for_it(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "small.py").write_text("def small():\n    pass\n")
    asked = {
        "larger": ["--gpu", "a10g", "--escalate"],
        "a100-80gb,h100": ["--escalate", "a100-80gb,h100", "--retries", "2"],
    }
    for ladder, arguments in asked.items():
        done = run_command(
            modal_emulator, tmp_path, "run", "small.py:small", "--dry-run", "--json", *arguments
        )
        assert done.returncode == 0, done.stderr
        spec = json.loads(done.stdout)
        assert (spec["backend"], spec["gpu"], spec["escalate"]) == ("modal", "a10g", ladder)
    assert spec["retries"] == 2


def test_a_timeout_on_modal_is_tried_again_where_the_volume_has_a_new_checkpoint(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        result = run_experiment(
            Resumes,
            {"steps": 2, "step_s": 0.1, "stuck_after": 1},
            backend=backend,
            observer=Recorder(),
            timeout_s=15,  # on a busy machine, the start takes some of it
            retries=9,
        )
        stuck = run_experiment(
            Resumes,
            {"steps": 1, "step_s": 60},
            backend=backend,
            observer=Recorder(),
            timeout_s=2,
            retries=1,
        )
    assert result.status is RunStatus.SUCCESS, result.error
    *before, last = [attempt.kind for attempt in result.attempts]
    assert set(before) == {ErrorKind.TIMEOUT}
    assert last is None
    assert [a.kind for a in stuck.attempts] == [ErrorKind.TIMEOUT]


def test_a_detached_run_climbs_without_its_terminal(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "large.py").write_text(LARGE)
    started = run_command(
        modal_emulator, tmp_path, "run", "large.py:large", "--gpu=t4", "--escalate=l4", "--detach"
    )
    assert started.returncode == 0, started.stderr
    waited = run_command(modal_emulator, tmp_path, "runs", "wait", "last")
    assert waited.returncode == 0, waited.stdout
    shown = run_command(modal_emulator, tmp_path, "runs", "show", "last", "--json")
    attempts = json.loads(shown.stdout)["attempts"]
    assert [a["gpu"] for a in attempts] == ["T4", "L4"]
