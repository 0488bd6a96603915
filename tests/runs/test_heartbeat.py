"""Signs of life of runs on other hosts, and clocks that are set while runs go on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import LocalBackend, Observer, load_run, run_experiment, submit_experiment
from ml_experiments.errors import RunFolderError
from ml_experiments.runner.following import ask_to_cancel, has_client
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import LOST_AFTER_S
from ml_experiments.runs.provenance import processes
from ml_experiments.runs.provenance.processes import ProcessId
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import RunStatus
from tests.support.run_folders import write_run
from tests.support.small_disk import small_disk
from tests.support.waiting import wait_until

DAY_S = 86400.0


@pytest.fixture
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this process's clock forward or back."""
    seconds, now, now_ns = request.param, time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))


set_clocks = pytest.mark.parametrize("clock", [DAY_S, -DAY_S], indirect=True, ids=["on", "back"])


@set_clocks
@pytest.mark.usefixtures("clock")
def test_a_clock_that_was_set_makes_no_run_of_another_host_lost_or_alive(runs_dir: Path) -> None:
    client = ProcessId("elsewhere", 1, boot_id="another", start_ticks=1)
    folder = write_run(
        runs_dir, "20261125-000000-0000001", status=None, manifest={"client": client}
    )
    assert folder.outcome().status is RunStatus.PENDING
    silent_since = folder.path.stat().st_mtime - LOST_AFTER_S - 60
    for name in ("manifest.json", "log.txt"):
        os.utime(folder.path / name, (silent_since, silent_since))
    assert folder.outcome().status is RunStatus.ERROR


@pytest.mark.parametrize("name", [".heartbeat", "log.txt"])
def test_a_sign_of_life_from_the_future_keeps_no_run_alive_but_skewed_clocks_do(
    runs_dir: Path, name: str
) -> None:
    client = ProcessId("elsewhere", 1, boot_id="another", start_ticks=1)
    folder = write_run(
        runs_dir, "20261125-000000-0000001", status=None, manifest={"client": client}
    )
    now = folder.path.stat().st_mtime
    for sign in ("manifest.json", "log.txt"):
        os.utime(folder.path / sign, (now - DAY_S, now - DAY_S))
    (folder.path / name).touch()
    os.utime(folder.path / name, (now + 60, now + 60))
    assert folder.outcome().status is RunStatus.PENDING
    os.utime(folder.path / name, (now + DAY_S, now + DAY_S))
    assert folder.outcome().status is RunStatus.ERROR
    assert not has_client(folder)


@set_clocks
@pytest.mark.usefixtures("clock")
def test_a_clock_that_was_set_hides_no_run_from_lists(runs_dir: Path) -> None:
    registry = RunRegistry(runs_dir)
    for number in range(3):
        run_id = f"20261125-000000-000000{number}"
        write_run(runs_dir, run_id)
        assert registry.rows()[0].run_id == run_id
    assert len(registry.rows()) == 3


def sets_the_clock(by_s: float) -> int:
    now = time.time
    time.time = lambda: now() + by_s
    return 1


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
def test_seconds_are_those_that_passed_though_the_clock_was_set_during_the_run(
    by_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", time.time)  # to be put back: the run is in this process
    result = run_experiment(
        sets_the_clock, {"by_s": by_s}, backend="debug", timeout_s=60, observer=Observer()
    )
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.attempts[0].seconds == result.timings["total_s"]
    assert 0 <= result.timings["run_s"] <= result.timings["total_s"] < 60


def waits(n: int = 1) -> int:
    print("begun", flush=True)
    time.sleep(60)
    return n


def test_another_host_that_shares_the_folder_sees_the_run_and_can_cancel_it(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalBackend() as backend:
        handle = submit_experiment(waits, {}, backend=backend, observer=Observer())
        wait_until(lambda: "begun" in handle.logs(), "the beginning of the run")
        with monkeypatch.context() as other_host:
            other_host.setattr(processes.socket, "gethostname", lambda: "elsewhere")
            other_host.setattr(processes, "_read_boot_id", lambda: "another")
            folder = RunFolder(handle.folder.path)
            assert folder.outcome().status is RunStatus.RUNNING
            assert has_client(folder)
            assert [row.status for row in RunRegistry(runs_dir).rows()] == ["running"]
            ask_to_cancel(folder, at_once=False)
        assert handle.result(60).status is RunStatus.CANCELLED


def three() -> int:
    return 3


def test_a_read_only_folder_gives_its_results_and_takes_no_run(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, LocalBackend() as backend:
        options: dict[str, Any] = {
            "backend": backend,
            "runs_dir": disk / "runs",
            "observer": Observer(),
        }
        first = run_experiment(three, {}, **options)
        failed = run_experiment(fails, {}, **options)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert load_run(first.run_id, runs_dir=disk / "runs") == first
        assert run_experiment(three, {}, reuse=True, **options).run_id == first.run_id
        with pytest.raises(RunFolderError, match="Read-only file system; choose another place"):
            run_experiment(three, {}, **options)
        assert failed.run_dir is not None
        with pytest.raises(RunFolderError, match=r"can't be locked: .*Read-only file system"):
            resume_run(RunFolder(failed.run_dir), backend=backend)


def fails() -> None:
    raise ValueError("a bad batch")
