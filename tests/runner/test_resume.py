"""`resume_run`: one attempt at a time, and nothing lost before it is accepted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ml_experiments import Error, LocalBackend, run_experiment
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from tests.support.waiting import wait_until

WAITS = """
import time
from ml_experiments import current_run

def waits(config):
    place = current_run().checkpoint_dir
    attempt = len(list(place.iterdir()))
    (place / f"attempt-{attempt}").touch()
    if attempt == 0:
        raise ValueError("the first one fails")
    while not (place.parent / "go").exists():
        time.sleep(0.01)
    return attempt
"""
RESUME = [sys.executable, "-m", "ml_experiments", "runs", "resume"]


@pytest.fixture
def failed(tmp_path: Path) -> RunFolder:
    """A run that ended in an error; its next attempts wait for the file `go`."""
    (tmp_path / "waiting_experiment.py").write_text(WAITS)
    result = run_experiment(f"{tmp_path}/waiting_experiment.py:waits")
    assert result.status is RunStatus.ERROR
    assert result.run_dir is not None
    return RunFolder(result.run_dir)


def attempts(folder: RunFolder) -> list[str]:
    return sorted(file.name for file in folder.checkpoint_dir.iterdir())


def test_a_run_is_resumed_by_one_at_a_time(failed: RunFolder) -> None:
    run_id = failed.path.name
    with LocalBackend() as backend:
        handle = resume_run(failed, backend=backend)
        assert failed.outcome().status in (RunStatus.PENDING, RunStatus.RUNNING)
        done = subprocess.run([*RESUME, run_id], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"run {run_id} is being run by another process" in done.stderr
        with pytest.raises(Error, match=f"run {run_id} is being run"):
            resume_run(failed, backend=backend)
        (failed.path / "go").touch()
        assert handle.result(60).results == 1
        with pytest.raises(Error, match="nothing to resume"):
            resume_run(failed, backend=backend)
    assert attempts(failed) == ["attempt-0", "attempt-1"]
    assert [f.name for f in failed.path.iterdir() if f.name.startswith(".")] == []


def test_an_attempt_that_is_not_accepted_changes_nothing(failed: RunFolder) -> None:
    def records() -> list[str]:
        return [f.read_text() for f in sorted(failed.path.iterdir()) if f.suffix == ".json"]

    before = records()
    closed = LocalBackend()
    closed.close()
    with pytest.raises(RuntimeError):
        resume_run(failed, backend=closed)
    assert records() == before
    (failed.path / "go").touch()
    with LocalBackend() as backend:
        assert resume_run(failed, backend=backend).result(60).results == 1


def test_the_manifest_names_the_client_that_resumed(failed: RunFolder) -> None:
    (failed.path / "go").touch()
    done = subprocess.run([*RESUME, "last", "--json"], capture_output=True, text=True, check=True)
    manifest = json.loads((failed.path / "manifest.json").read_text())
    assert manifest["client"]["pid"] != psutil.Process().pid
    assert manifest["process"]["pid"] != manifest["client"]["pid"]
    assert manifest["seed"] == json.loads((failed.path / "spec.json").read_text())["seed"]
    assert json.loads(done.stdout)["results"] == 1


def test_a_client_that_was_killed_holds_no_run_back(failed: RunFolder) -> None:
    client = subprocess.Popen([*RESUME, "last"], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(attempts(failed)) == 2, "the second attempt")
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: failed.outcome().status is RunStatus.CANCELLED, "the worker's end")
    (failed.path / "go").touch()
    with LocalBackend() as backend:
        assert resume_run(failed, backend=backend).result(60).results == 2
