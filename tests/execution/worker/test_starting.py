"""The process that a command starts before it is imported itself: used once, never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CHILDREN_OF_CLIENT = """
import os, psutil
threads = os.environ.get("OMP_NUM_THREADS")  # at import
def run(client: int):
    return len(psutil.Process(client).children()), threads
"""
CLIENT = """
import os, sys
from ml_experiments.__main__ import main
command, *options = sys.argv[1:]
sys.argv = ["ml-experiments", command, "job.py:run", f"client={os.getpid()}", "--json", *options]
main()
"""


@pytest.mark.parametrize(
    ("command", "threads"),
    [(["run"], None), (["sweep", "--parallel", "100"], "1")],
    ids=["run", "sweep"],
)
def test_a_command_uses_the_process_that_was_started_early(
    tmp_path: Path, command: list[str], threads: str | None
) -> None:
    (tmp_path / "job.py").write_text(CHILDREN_OF_CLIENT)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *command],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout)
    if "points" in outcome:
        [outcome] = outcome["points"]
    assert outcome["results"] == [1, threads]  # started with the threads of its backend


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["job.py:run", "--sed", "3"], 2),
        (["no_such_file.py:run"], 2),
        (["job.py:run", "client=1", "--dry-run"], 0),
        (["job.py:run", "client=1", "--backend", "local", "--memory", "512"], 2),
    ],
    ids=["unknown option", "no file", "dry run", "another backend's option"],
)
def test_a_command_that_starts_no_run_leaves_no_process(
    tmp_path: Path, arguments: list[str], exit_code: int
) -> None:
    (tmp_path / "job.py").write_text(CHILDREN_OF_CLIENT)
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "ml_experiments", "run", *arguments],
        cwd=tmp_path,
        env={**os.environ, "MARK_OF_TEST": mark},
        capture_output=True,
        check=False,
    )
    assert done.returncode == exit_code
    wait_until(lambda: not processes_with(mark), "the end of all processes")


def processes_with(mark: str) -> list[int]:
    """Return the processes whose environment holds a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK_OF_TEST") == mark:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


SEARCHED_SINCE = """
import sys
from ml_experiments.execution.worker.starting import start_early
start_early()
sys.path.append(sys.argv[1])
from ml_experiments import Observer, run_experiment
print(run_experiment("job.py:run", observer=Observer()).results)
"""


def test_a_process_that_was_started_early_is_left_if_modules_are_found_elsewhere_now(
    tmp_path: Path,
) -> None:
    (tmp_path / "job.py").write_text("import added\ndef run(): return added.VALUE\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "added.py").write_text("VALUE = 'found'\n")
    done = subprocess.run(
        [sys.executable, "-c", SEARCHED_SINCE, str(tmp_path / "more")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "found\n"
