"""The run that a template rehearses."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from ml_experiments.execution import execute
from ml_experiments.execution.worker import rehearsal
from ml_experiments.runs.result import RunResult, RunStatus


def test_a_rehearsed_run_succeeds_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # the template ignores that a rehearsal fails, so nothing but this test would show it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    execute_run, results = execute.execute_run, list[RunResult]()

    def noted(*args: object, **kwargs: object) -> RunResult:
        results.append(execute_run(*args, **kwargs))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr(rehearsal, "execute_run", noted)
    interrupts = signal.getsignal(signal.SIGINT)
    rehearsal.rehearse()
    assert [result.status for result in results] == [RunStatus.SUCCESS]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is interrupts
