"""`resume_run`: one attempt at a time, and nothing lost before it is accepted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ml_experiments import Error, LocalBackend, run_experiment
from ml_experiments.errors import SupersededError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunResult, RunStatus
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

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


def test_every_attempt_is_kept_with_its_error_and_the_log_tells_them_apart(
    failed: RunFolder,
) -> None:
    (failed.path / "go").touch()
    source = Path(str(failed.read_spec().experiment).rpartition(":")[0])
    working = source.read_text()
    source.write_text(
        working.replace("    while", '    raise KeyError("the second one too")\n    while')
    )
    with LocalBackend() as backend:
        second = resume_run(failed, backend=backend).result(60)
        source.write_text(working)
        third = resume_run(failed, backend=backend).result(60)
    assert second.error is not None
    assert [a.number for a in second.attempts] == [1, 2]
    assert third.status is RunStatus.SUCCESS
    told = [(a.number, a.status, a.error and a.error.message) for a in third.attempts]
    assert told == [
        (1, "error", "the first one fails"),
        (2, "error", "'the second one too'"),
        (3, "success", None),
    ]
    assert all(a.place and a.began_at and a.seconds is not None for a in third.attempts)
    assert third.attempts[0].error is not None
    assert "in waits" in third.attempts[0].error.traceback
    assert failed.read_result().attempts == third.attempts
    show = [sys.executable, "-m", "ml_experiments", "runs", "show", "last"]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "attempt 1" in shown
    assert "ValueError: the first one fails" in shown
    log = failed.log_file.read_text()
    positions = [
        log.index(text)
        for text in ("the first one fails", "--- attempt 2,", "the second one", "--- attempt 3,")
    ]
    assert positions == sorted(positions)


def test_an_attempt_that_another_has_followed_writes_nothing_more(failed: RunFolder) -> None:
    first = RunFolder(failed.path, attempt=1)
    nothing = Redactor(())
    manifest = failed.read_manifest()
    second = failed.begin_attempt(dataclasses.replace(manifest, attempt=2), nothing)
    late = RunResult(run_id=failed.path.name, status=RunStatus.CANCELLED, experiment_class="x")
    with pytest.raises(SupersededError, match="attempt 1 at run"):
        first.write_result(late, nothing)
    with pytest.raises(SupersededError):
        first.write_manifest(manifest, nothing)
    assert not failed.result_file.exists()
    second.write_result(late, nothing)
    assert failed.read_result().status is RunStatus.CANCELLED


def as_seen_elsewhere(folder: RunFolder, silence_s: float) -> None:
    """Make a run unfinished, and its process one of a machine that can't be seen from here."""
    folder.result_file.unlink()
    manifest = folder.read_manifest()
    assert manifest.process is not None
    elsewhere = dataclasses.replace(manifest.process, hostname="another-machine")
    folder.write_manifest(dataclasses.replace(manifest, process=elsewhere), Redactor(()))
    for file in folder.path.iterdir():
        os.utime(file, (time.time() - silence_s,) * 2)


def test_a_run_on_a_machine_that_is_gone_is_lost_once_it_is_silent(failed: RunFolder) -> None:
    as_seen_elsewhere(failed, silence_s=30)
    assert failed.outcome().status is RunStatus.RUNNING
    with LocalBackend() as backend:
        with pytest.raises(Error, match="--force"):
            resume_run(failed, backend=backend)
        (failed.path / ".heartbeat").touch()  # its client goes on, though nothing is printed
        as_silent = failed.path / "log.txt"
        os.utime(as_silent, (0, 0))
        assert failed.outcome().status is RunStatus.RUNNING
        for file in failed.path.iterdir():
            os.utime(file, (time.time() - 3600,) * 2)
        outcome = failed.outcome()
        assert outcome.status is RunStatus.ERROR
        assert outcome.error is not None
        assert "another-machine" in outcome.error.message
        (failed.path / "go").touch()
        assert resume_run(failed, backend=backend).result(60).results == 1


def test_a_run_that_only_seems_to_go_on_is_resumed_by_force(failed: RunFolder) -> None:
    as_seen_elsewhere(failed, silence_s=0)
    (failed.path / "go").touch()
    command = [*RESUME, "--force", failed.path.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = failed.read_result()
    assert result.results == 1
    first, _ = result.attempts
    assert first.error is not None
    assert (first.status, "by force" in first.error.message) == (RunStatus.ERROR, True)


@pytest.mark.parametrize("named", ["by file", "by module"])
def test_a_project_that_was_moved_resumes(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "lib").mkdir(parents=True)
    (project / "lib" / "__init__.py").touch()
    (project / "lib" / "helper.py").write_text("VALUE = 3\n")
    (project / "train.py").write_text(
        "from lib.helper import VALUE\n"
        "from ml_experiments import current_run\n"
        "def run():\n"
        "    first = current_run().checkpoint_dir / 'first'\n"
        "    if first.exists(): return VALUE\n"
        "    first.touch()\n"
        "    raise ValueError\n"
    )
    monkeypatch.chdir(project)
    path = "train.py:run" if named == "by file" else "train.run"
    result = run_experiment(path, runs_dir=Path("runs"))
    assert result.error is not None
    assert result.error.type == "ValueError"
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "moved")
    folder = RunFolder(tmp_path / "moved" / "runs" / result.run_id)
    with LocalBackend() as backend:
        assert resume_run(folder, backend=backend).result(60).raise_for_error().results == 3


@pytest.mark.parametrize(
    ("file", "started_in", "path"),
    [
        ("src/train.py", ".", "train.run"),
        ("experiments/train.py", "experiments", "train.run"),
        ("experiments/train.py", "runs", "../experiments/train.py:run"),
        ("experiments/train.py", ".", "experiments/train.py:run"),
    ],
)
def test_a_moved_project_resumes_whatever_stands_at_its_old_place_and_wherever_it_was_started(
    file: str, started_in: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    for folder in (project / file).parent, project / "runs":
        folder.mkdir(parents=True)
    (project / file).write_text(
        "from ml_experiments import current_run\n"
        "def run():\n"
        "    first = current_run().checkpoint_dir / 'first'\n"
        "    if first.exists(): return 3\n"
        "    first.touch()\n"
        "    raise ValueError\n"
    )
    if not file.startswith("src"):
        (project / "train.py").write_text("raise OSError('another file of that name')\n")
    monkeypatch.chdir(project / started_in)
    result = run_experiment(path, runs_dir=project / "runs")
    assert result.error is not None
    assert result.error.type == "ValueError"
    project.rename(tmp_path / "moved")
    (project / started_in).mkdir(parents=True)
    (project / file).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "moved")
    run_folder = RunFolder(tmp_path / "moved" / "runs" / result.run_id)
    with LocalBackend() as backend:
        assert resume_run(run_folder, backend=backend).result(60).raise_for_error().results == 3


@pytest.mark.parametrize(
    "recorded",
    [{"config": {"token": Redactor.MARK}}, {"backend_options": {"pip": [Redactor.MARK]}}],
    ids=["config", "backend options"],
)
def test_a_run_whose_request_held_a_secret_is_not_resumed(
    failed: RunFolder, recorded: dict[str, object]
) -> None:
    file = failed.path / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **recorded}))
    before = {f.name: f.read_bytes() for f in failed.path.iterdir() if f.is_file()}
    with LocalBackend() as backend, pytest.raises(Error, match=r"held a secret.*new run"):
        resume_run(failed, backend=backend)
    after = {f.name: f.read_bytes() for f in failed.path.iterdir() if f.is_file()}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("limit_s", [1e12, float("inf")])
def test_a_wait_without_an_end_is_no_error(failed: RunFolder, limit_s: float) -> None:
    (failed.path / "go").touch()
    with LocalBackend() as backend:
        assert resume_run(failed, backend=backend).result(limit_s).status is RunStatus.SUCCESS
