"""A warm worker is as good as a new one, or it is replaced by one."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.runs.result import RunStatus
from tests.support.experiments import Fit, Plain
from tests.support.waiting import wait_until


@pytest.mark.parametrize("notices", ["before", "while"])
def test_a_worker_that_died_while_idle_is_replaced(notices: str) -> None:
    with LocalBackend() as backend:
        first = run_experiment(Fit, {"steps": 1}, backend=backend).results["pid"]
        os.kill(first, signal.SIGKILL)
        if notices == "before":
            wait_until(lambda: not psutil.pid_exists(first), "its end")
        second = run_experiment(Fit, {"steps": 1}, backend=backend)
        assert second.status is RunStatus.SUCCESS
        assert second.results["pid"] != first
        os.kill(second.results["pid"], signal.SIGKILL)


@pytest.mark.parametrize(("deaths", "status"), [(1, "success"), (2, "error")])
def test_a_worker_that_dies_before_it_starts_a_run_is_replaced_once(
    deaths: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "started = os.path.join(os.path.dirname(__file__), 'started')\n"
        "if 'worker.child' in str(sys.orig_argv):\n"
        "    open(started, 'a').write('x')\n"
        # the first one only checks the config
        f"    if 1 < os.path.getsize(started) <= 1 + {deaths}:\n"
        "        os._exit(9)\n"
    )
    (tmp_path / "threaded.py").write_text(
        # with a thread of its own it can't be forked, so the worker is a new interpreter
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def train(): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_experiment(f"{tmp_path}/threaded.py:train")
    assert result.status == status
    if result.error:
        assert "ended with code 9 before it started the run" in result.error.message


def test_modules_of_one_name_are_each_experiments_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "namesake_helper.py").write_text(f"FOLDER = {name!r}\n")
        (tmp_path / name / f"train_{name}.py").write_text(
            "import namesake_helper\ndef train(config):\n    return namesake_helper.FOLDER\n"
        )
    with LocalBackend() as backend:
        found = [
            run_experiment(f"{tmp_path}/{name}/train_{name}.py:train", backend=backend).results
            for name in ("a", "b", "b", "a")
        ]
    assert found == ["a", "b", "b", "a"]


CHANGES = """
import os
from ml_experiments import Experiment, ExperimentConfig
os.environ["BY_IMPORT"] = "kept"

def changes():
    os.chdir("/")
    os.environ["ADDED"] = "leaks"
    os.environ["GIVEN"] = "changed"
    os.environ.pop("REMOVED")

def state():
    return [os.getcwd(), *map(os.environ.get, ("ADDED", "GIVEN", "REMOVED", "BY_IMPORT"))]

class SetsUp(Experiment):
    class Config(ExperimentConfig):
        x: int = 0

    setup_fields = ()

    def setup(self):
        os.environ["BY_SETUP"] = "kept"

    def run(self):
        seen = [os.environ.get("BY_SETUP"), os.environ.get("BY_RUN"), "setup" in vars(self)]
        os.environ["BY_RUN"] = "leaks"
        return seen
"""


def test_what_a_run_does_to_its_process_does_not_reach_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing.py").write_text(CHANGES)
    monkeypatch.setenv("GIVEN", "before")
    monkeypatch.setenv("REMOVED", "before")
    with LocalBackend() as backend:
        for name in ("changes", "state"):
            result = run_experiment(f"{tmp_path}/changing.py:{name}", backend=backend)
        assert result.results == [str(Path.cwd()), None, "before", "before", "kept"]
        warm = [
            run_experiment(f"{tmp_path}/changing.py:SetsUp", {"x": x}, backend=backend).results
            for x in range(3)
        ]
    assert warm == [["kept", None, False]] * 3


def test_a_relative_runs_folder_is_the_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import os\ndef leaves():\n    os.chdir('/')\n    return 'there'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, meant in (("kept", tmp_path / "kept"), ("~/kept", tmp_path / "home" / "kept")):
        result = run_experiment("leaving.leaves", runs_dir=Path(given))
        assert result.results == "there"
        assert result.run_dir == meant / result.run_id
        assert (result.run_dir / "result.json").exists()


def test_runs_work_in_a_client_with_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this system allows fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run_experiment(Plain).status is RunStatus.SUCCESS
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
