"""Whatever ends a worker or its client, nothing that they started stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, RunHandle, run_experiment, submit_experiment
from ml_experiments.runs.result import RunStatus
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

KILLED_WITH_CHILDREN = """
import multiprocessing, os, signal
def run():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=queue.get) for _ in range(2)]
    for child in children: child.start()
    with open(%r, "w") as file: file.write(" ".join(str(c.pid) for c in children))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_while_its_children_live_ends_the_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    (tmp_path / "killed.py").write_text(KILLED_WITH_CHILDREN % str(pids))
    result = run_experiment(f"{tmp_path}/killed.py:run", timeout_s=60)
    assert result.error is not None
    assert result.error.kind == "host_oom"
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split())


LOGS_WITHOUT_END = """
import time
from ml_experiments import current_run
def run():
    ends_at = time.time() + 60
    while time.time() < ends_at:
        for step in range(1000): current_run().log({"step": step})
"""


def client_of(path: str) -> subprocess.Popen[bytes]:
    """Start `ml-experiments run` in a process of its own."""
    command = [sys.executable, "-m", "ml_experiments", "run", path]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_and_wait(client: subprocess.Popen[bytes]) -> None:
    """Kill a client; return once all that it started has ended."""
    started = psutil.Process(client.pid).children(recursive=True)
    assert started
    client.kill()
    client.wait()
    wait_until(lambda: not any(p.is_running() for p in started), "the end of its processes")


def test_a_client_that_is_killed_while_events_are_unread_leaves_no_process(
    tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "logs.py").write_text(LOGS_WITHOUT_END)
    client = client_of(f"{tmp_path}/logs.py:run")
    wait_until(lambda: list(runs_dir.glob("*/metrics.jsonl")), "the first metric")
    client.send_signal(signal.SIGSTOP)
    time.sleep(0.3)  # events pile up
    kill_and_wait(client)
    [file] = runs_dir.glob("*/result.json")
    assert json.loads(file.read_text())["status"] == "cancelled"


SLEEPS = "import time\ndef run():\n    print('begun', flush=True)\n    time.sleep(600)\n"
CLIENT = """
import sys
from functools import partial
from ml_experiments import run_experiment
from ml_experiments.backends.local import backend
backend.Supervision = partial(backend.Supervision, goes_on_elsewhere=True)
run_experiment(sys.argv[1])
"""


def test_a_run_that_goes_on_elsewhere_has_not_ended_with_its_client(
    tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    client = subprocess.Popen([sys.executable, "-c", CLIENT, f"{tmp_path}/sleeps.py:run"])
    wait_until(lambda: any(f.read_text() for f in runs_dir.glob("*/log.txt")), "its output")
    kill_and_wait(client)
    assert not list(runs_dir.glob("*/result.json"))


IMPORTS_WITHOUT_END = """
import ctypes, os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(%r, "w").close()
while True: %s
"""


# in C, with the interpreter's lock: no other thread of Python comes to anything
HOLDS_LOCK = "ctypes.PyDLL(None).pause()"


@pytest.mark.parametrize("does", ["time.sleep(600)", "pass", HOLDS_LOCK])
def test_a_client_that_is_killed_during_an_import_leaves_no_process(
    does: str, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "stays.py").write_text(IMPORTS_WITHOUT_END % (str(begun), does))
    client = client_of(f"{tmp_path}/stays.py:run")
    wait_until(begun.exists, "the import")
    kill_and_wait(client)


STAYS = """
import os, signal, time
def run():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
    with open(%r, "w") as file: file.write(f"{os.getppid()} {child}")
    os.rename(%r, %r)
    time.sleep(600)
"""


def test_a_guard_that_is_killed_takes_its_worker_and_all_else_with_it(tmp_path: Path) -> None:
    draft, file = tmp_path / "draft", tmp_path / "pids"
    (tmp_path / "stays.py").write_text(STAYS % (str(draft), str(draft), str(file)))
    with LocalBackend() as backend:
        handle = submit_experiment(f"{tmp_path}/stays.py:run", backend=backend)
        wait_until(file.exists, "the run")
        guard, child = map(int, file.read_text().split())
        os.kill(guard, signal.SIGKILL)
        error = handle.result(60).error
        assert error is not None
        assert error.kind == "host_oom"
        wait_until(lambda: not psutil.pid_exists(child), "the end of the child")
    assert handle.status is RunStatus.ERROR


WRITES_LONG = """
import os, time
from ml_experiments import current_run
class Slow(dict):
    def items(self):
        open(%r, "w").close()
        time.sleep(2)
        return super().items()
def run():
    return Slow({"loss": 0.1})
"""


@pytest.mark.parametrize("interrupt", ["client killed", "cancelled"])
def test_what_run_has_returned_is_written_whatever_comes_after(
    interrupt: str, tmp_path: Path, runs_dir: Path
) -> None:
    returned = tmp_path / "returned"
    (tmp_path / "writes.py").write_text(WRITES_LONG % str(returned))
    path = f"{tmp_path}/writes.py:run"
    if interrupt == "cancelled":
        with LocalBackend() as backend:
            handle = submit_experiment(path, backend=backend)
            wait_until(returned.exists, "the end of run()")
            handle.cancel()
            assert handle.result(60).results == {"loss": 0.1}
        return
    client = client_of(path)
    wait_until(returned.exists, "the end of run()")
    kill_and_wait(client)
    [file] = runs_dir.glob("*/result.json")
    result = json.loads(file.read_text())
    assert result["status"] == "success"
    assert result["results"] == {"loss": 0.1}
    assert [f.name for f in file.parent.iterdir() if f.name.startswith(".")] == []


def test_what_a_run_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(
        "import subprocess, sys\n"
        "def run():\n"
        "    sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    daemon = 'import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(600)'\n"
        "    started = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]\n"
        "    subprocess.run([sys.executable, '-c', daemon])\n"
        "    return [process.pid for process in started]\n"
    )
    before = set(psutil.pids())
    result = run_experiment(f"{tmp_path}/leaves.py:run").raise_for_error()
    assert not any(psutil.pid_exists(pid) for pid in result.results)
    names = [_command(pid) for pid in set(psutil.pids()) - before]
    assert not any("time.sleep(600)" in name for name in names)


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def test_an_exception_in_the_block_cancels_what_runs_and_starts_nothing_more(
    tmp_path: Path,
) -> None:
    (tmp_path / "waits.py").write_text(
        "import pathlib, time\n"
        f"def run(n: int):\n    pathlib.Path({str(tmp_path)!r}, f'began{{n}}').touch()\n"
        "    time.sleep(60)\n"
    )
    handles: list[RunHandle] = []

    def use_a_backend() -> None:
        path = f"{tmp_path}/waits.py:run"
        with LocalBackend() as backend:
            handles.extend(submit_experiment(path, {"n": n}, backend=backend) for n in range(3))
            wait_until((tmp_path / "began0").exists, "the first run")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        use_a_backend()
    assert [handle.result(60).status for handle in handles] == [RunStatus.CANCELLED] * 3
    assert not (tmp_path / "began1").exists()
