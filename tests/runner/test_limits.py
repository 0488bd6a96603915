"""Limits of the system, and what can't be: errors that say what to do, and no run that hangs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments import BackendError, ConfigError, LocalBackend, run_experiment
from ml_experiments.cli.main import main
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import ErrorKind

FORK_FAILS = """
import os

real, calls = os.fork, 0

def fork():
    global calls
    calls += 1
    if calls >= {first}:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real()

os.fork = fork
def run(): return 1
"""
THREAD_FAILS = """
import threading

def start(self): raise RuntimeError("can't start new thread")

threading.Thread.start = start
def run(): return 1
"""


def children() -> set[int]:
    """Return the ids of the children of this process, zombies included."""
    return {child.pid for child in psutil.Process().children()}


# the first fork is the guard's of the worker that describes; then follow the one of that worker
# and, in the template, of the guard that executes
@pytest.mark.parametrize(
    "source",
    [FORK_FAILS.format(first=1), FORK_FAILS.format(first=2), THREAD_FAILS],
    ids=["guard", "worker", "thread"],
)
def test_without_room_for_a_process_nothing_starts(source: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(source)
    before = children()
    with pytest.raises(BackendError, match=r"ulimit -u"):
        run_experiment(f"{tmp_path}/job.py:run", runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert children() <= before


def test_a_run_whose_process_can_not_be_started_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(FORK_FAILS.format(first=3))
    result = run_experiment(f"{tmp_path}/job.py:run", runs_dir=tmp_path / "runs")
    assert result.error is not None
    assert result.error.kind is ErrorKind.INFRASTRUCTURE
    assert "ulimit -u" in result.error.message
    assert [row.status for row in RunRegistry(tmp_path / "runs").rows()] == ["error"]


TOO_FEW_FILES = """
import pathlib
import resource
from ml_experiments import LocalBackend, submit_experiment

resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
options = {"runs_dir": pathlib.Path("runs")}
with LocalBackend(max_workers=12) as backend:
    handles = [submit_experiment("job.py:run", backend=backend, **options) for _ in range(12)]
    for handle in handles:
        handle.result().raise_for_error()
"""


def test_with_few_open_files_fewer_workers_run_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def run(): return 1\n")
    done = subprocess.run(
        [sys.executable, "-c", TOO_FEW_FILES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {row.status for row in RunRegistry(tmp_path / "runs").rows()} == {"success"}


def test_without_a_thread_for_it_a_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.py").write_text("def run(): return 1\n")

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with LocalBackend() as backend:
        monkeypatch.setattr(backend._threads, "submit", refuse)
        with pytest.raises(BackendError, match=r"ulimit -u"):
            run_experiment(f"{tmp_path}/job.py:run", backend=backend, runs_dir=tmp_path / "runs")
    assert [row.status for row in RunRegistry(tmp_path / "runs").rows()] == ["error"]


@pytest.mark.parametrize(
    "arguments", [["run", "job.py:run"], ["runs", "list"], ["runs", "show", "x"]]
)
def test_a_deleted_working_folder_is_named(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.delenv("ML_EXPERIMENTS_RUNS_DIR", raising=False)
    gone.rmdir()
    with pytest.raises(SystemExit) as e:
        main(arguments)
    monkeypatch.undo()
    assert e.value.code == 2
    assert "the current folder can't be used" in capsys.readouterr().err


@pytest.mark.parametrize("timeout_s", [1e12, math.nan, math.inf, -math.inf, -1, 0, 10**400, True])
def test_an_impossible_timeout_is_refused(timeout_s: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        run_experiment(
            "tests.support.experiments:Plain", timeout_s=timeout_s, runs_dir=tmp_path / "runs"
        )
    assert not (tmp_path / "runs").exists()


def test_the_longest_timeout_is_one_that_timers_take(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def run(): return 1\n")
    result = run_experiment(f"{tmp_path}/job.py:run", timeout_s=10 * 365 * 24 * 3600)
    assert result.results == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_runs_folder_that_can_not_be_one_is_named(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "job.py").write_text("def run(): return 1\n")
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(tmp_path / place))
    with pytest.raises(SystemExit) as e:
        main(["run", f"{tmp_path}/job.py:run"])
    assert e.value.code == 2
    assert "choose another place with runs_dir" in capsys.readouterr().err
