"""Runs that are tried again: only after what can pass by itself, and in one run folder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ml_experiments import LocalBackend, Observer, run_experiment, submit_experiment
from ml_experiments.runner import retry
from ml_experiments.runner.following import wait_for_end
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WAIT_S = 60
FAILS_AT_FIRST = """
import os, signal, sys, time
from ml_experiments import current_run, SoftTimeout
from ml_experiments.errors import BackendError, ConfigError


def fails(times=1, how="lost", saves=True):
    place = current_run().checkpoint_dir
    attempt = len(list(place.iterdir()))
    (place / f"attempt-{attempt}").touch()
    if attempt >= times:
        return attempt
    print("attempt", attempt, flush=True)
    if not saves:
        os.utime(place / f"attempt-{attempt}", (1, 1))
    match how:
        case "lost":
            os.kill(os.getpid(), signal.SIGKILL)
        case "platform":
            raise BackendError("the service is away")
        case "bug":
            raise ValueError("a bug")
        case "config":
            raise ConfigError("a bad value")
        case "import":
            import a_package_that_is_not_there
        case "exit":
            os._exit(3)
        case "memory":
            raise MemoryError
        case "timeout":
            time.sleep(60)
"""


class Events(Observer):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.finished_as: list[str] = []

    def notice(self, spec: RunSpec, text: str) -> None:
        self.notices.append(text)

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self.finished_as.append(str(result.status))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An experiment that fails at first; the next attempt comes soon."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.01)
    file = tmp_path / "fails_at_first.py"
    file.write_text(FAILS_AT_FIRST)
    return f"{file}:fails"


def test_a_run_whose_process_was_lost_is_tried_again_in_its_folder(path: str) -> None:
    events = Events()
    result = run_experiment(path, {"times": 2}, retries=2, observer=events)
    assert (result.status, result.results) == (RunStatus.SUCCESS, 2)
    assert [a.number for a in result.attempts] == [1, 2, 3]
    assert [a.status for a in result.attempts] == ["error", "error", "success"]
    assert [a.error.type for a in result.attempts if a.error] == ["SIGKILL", "SIGKILL"]
    assert events.finished_as == ["success"]
    assert [n.partition("; ")[2].partition(" in")[0] for n in events.notices] == [
        "attempt 2",
        "attempt 3",
    ]
    assert result.run_dir is not None
    log = (result.run_dir / "log.txt").read_text()
    assert log.index("attempt 0") < log.index("--- attempt 2,") < log.index("attempt 1")
    assert RunFolder(result.run_dir).read_result() == result
    left = {file.name for file in result.run_dir.iterdir()}
    assert left.isdisjoint({".lock", ".heartbeat", ".cancel"})


def test_the_last_error_stands_when_the_retries_are_used_up(path: str) -> None:
    result = run_experiment(path, {"times": 9, "how": "platform"}, retries=1, observer=Events())
    assert result.error is not None
    assert result.error.kind is ErrorKind.INFRASTRUCTURE
    assert [a.kind for a in result.attempts] == [ErrorKind.INFRASTRUCTURE] * 2


@pytest.mark.parametrize("how", ["bug", "config", "import", "exit", "memory"])
def test_errors_of_the_experiment_are_never_tried_again(path: str, how: str) -> None:
    result = run_experiment(path, {"how": how}, retries=3, observer=Events())
    assert (result.status, len(result.attempts)) == (RunStatus.ERROR, 1)


@pytest.mark.parametrize(("saves", "attempts"), [(True, 2), (False, 1)])
def test_a_timeout_is_tried_again_only_after_a_new_checkpoint(
    path: str, saves: bool, attempts: int
) -> None:
    config = {"how": "timeout", "saves": saves}
    result = run_experiment(path, config, retries=1, timeout_s=0.5, observer=Events())
    assert len(result.attempts) == attempts
    assert result.attempts[0].kind is ErrorKind.TIMEOUT
    assert result.status == ("success" if saves else "error")


def test_without_retries_there_is_one_attempt(path: str) -> None:
    result = run_experiment(path, observer=Events())
    assert (result.status, len(result.attempts)) == (RunStatus.ERROR, 1)


def test_a_run_that_waits_for_its_next_attempt_goes_on_for_everyone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 60.0)
    events = Events()
    with LocalBackend() as backend:
        handle = submit_experiment(path, backend=backend, retries=1, observer=events)
        wait_until(lambda: bool(events.notices), "the end of the first attempt")
        assert (handle.done(), handle.status) == (False, RunStatus.PENDING)
        assert RunLock.is_held(handle.folder)
        with pytest.raises(TimeoutError, match="is pending"):
            wait_for_end(handle.folder, limit_s=0.1)
        handle.cancel()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.CANCELLED
    assert [a.status for a in result.attempts] == ["error", "cancelled"]
    assert wait_for_end(handle.folder, limit_s=5) == result


def test_a_backend_that_is_left_waits_for_the_next_attempt(path: str) -> None:
    with LocalBackend() as backend:
        handle = submit_experiment(path, backend=backend, retries=1, observer=Events())
    assert handle.done()
    assert handle.result().results == 1


def test_an_experiment_that_no_longer_imports_ends_the_run(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 1.0)
    source, events = Path(path.rpartition(":")[0]), Events()
    with LocalBackend() as backend:
        handle = submit_experiment(path, backend=backend, retries=1, observer=events)
        wait_until(lambda: bool(events.notices), "the end of the first attempt")
        source.write_text("def fails(:")
        with pytest.raises(Exception, match="fails_at_first"):
            handle.result(WAIT_S)
        assert handle.folder.outcome().status is RunStatus.ERROR


def test_a_killed_process_is_lost_but_not_one_that_lacks_memory() -> None:
    from ml_experiments.runs.result import RunError

    killed = RunError(ErrorKind.HOST_OOM, signal.Signals.SIGKILL.name, "")
    assert retry.can_pass(killed, has_progressed=lambda: False)
    full = RunError(ErrorKind.HOST_OOM, "MemoryError", "")
    assert not retry.can_pass(full, has_progressed=lambda: True)
    assert retry.can_pass(RunError(ErrorKind.PREEMPTED, "Preempted", ""), has_progressed=bool)
