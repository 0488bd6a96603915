"""`run --detach` and `ml-experiments runs follow|logs|wait|cancel`, each as processes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from tests.support.terminal import Tmux, needs_tmux
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WAITS = """
import time
from pathlib import Path
from ml_experiments import current_run

def waits(word: str = "done", token: str = ""):
    print("begun", flush=True)
    place = current_run().output_dir.parent
    try:
        while not (place / "go").exists():
            time.sleep(0.01)
    except KeyboardInterrupt:
        (current_run().output_dir / "saved.txt").write_text("saved")
        raise
    print("going é", flush=True)
    return word
"""
KILLED_AT_FIRST = '''
    import os
    if not os.listdir(current_run().checkpoint_dir):
        (current_run().checkpoint_dir / "one").touch()
        os.kill(os.getpid(), 9)
    print("begun"'''
COMMAND = [sys.executable, "-m", "ml_experiments"]
LIMIT_S = 60


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "waiting.py").write_text(WAITS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def detached(*overrides: str) -> RunFolder:
    done = call("run", "waiting.py:waits", *overrides, "--detach", "--json")
    assert done.returncode == 0, done.stderr
    return RunFolder(Path(json.loads(done.stdout)["run_dir"]))


def supervisor_of(folder: RunFolder) -> psutil.Process:
    client = folder.read_manifest().client
    assert client is not None
    return psutil.Process(client.pid)


def wait_until_begun(folder: RunFolder) -> None:
    wait_until(lambda: "begun" in folder.log_file.read_text(), "the beginning of the run")


def test_a_detached_run_is_followed_to_its_result_and_leaves_no_process() -> None:
    folder = detached("word=fine")
    supervisor = supervisor_of(folder)
    processes = [supervisor, *supervisor.children(recursive=True)]
    with subprocess.Popen(
        [*COMMAND, "runs", "follow", "last"], stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "begun\n"
        (folder.path / "go").touch()
        rest = follower.stdout.read()
    assert follower.returncode == 0
    assert rest.startswith("going é\n")
    assert "success" in rest
    assert folder.read_result().results == "fine"
    _, left = psutil.wait_procs(processes, LIMIT_S)
    assert left == []
    again = call("runs", "follow", "last")
    assert again.stdout.startswith("begun\ngoing é\n")
    assert call("runs", "logs", "last").stdout == "begun\ngoing é\n"
    assert call("runs", "logs", "last", "--since", "10m").stdout == "begun\ngoing é\n"
    assert call("runs", "logs", "-f", "last", "--since", "2999-01-01").stdout == ""
    assert "'soon' is not a date" in call("runs", "logs", "last", "--since", "soon").stderr
    assert call("runs", "wait", "last").stdout == f"{folder.path.name}  success\n"


def test_of_a_progress_bar_in_a_log_the_last_state_is_shown(project: Path) -> None:
    (project / "bars.py").write_text(
        "def bars():\n    for n in range(9):\n        print(f'\\r{n}/9 é', end='', flush=True)\n"
    )
    assert call("run", "bars.bars").returncode == 0
    for command in (["logs", "last"], ["logs", "-f", "last"], ["follow", "last"]):
        assert call("runs", *command).stdout.startswith("8/9 é\n")
    followed = call("runs", "follow", "last", "--json")
    assert json.loads(followed.stdout)["status"] == "success"
    assert followed.stderr == "8/9 é\n"


@needs_tmux
@pytest.mark.parametrize("command", ["follow", "logs -f"])
def test_ctrl_c_takes_the_status_line_away_and_leaves_the_run(command: str, project: Path) -> None:
    folder = detached()
    wait_until_begun(folder)
    shell = shlex.join([*COMMAND, "runs", *command.split(), "last"])
    with Tmux(f"trap : INT; {shell}", 80, project) as tmux:
        tmux.wait_until(lambda lines: any(re.search("0:00:0[1-9]$", line) for line in lines))
        tmux.type("C-c")
        lines = tmux.wait()
    assert not any(re.search(r"0:00:\d+$", line) for line in lines)
    assert any(line.endswith("goes on; come back to it with:") for line in lines)
    (folder.path / "go").touch()
    assert call("runs", "wait", "last", "--timeout", f"{LIMIT_S}").returncode == 0


def test_a_detached_run_outlives_its_terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*COMMAND, "run", "waiting.py:waits", "--detach"])
    shown = b""
    while b"runs cancel" not in shown:
        shown += os.read(terminal, 4096)
    os.waitpid(pid, 0)
    os.close(terminal)  # everything in its session is hung up
    [path] = [p for p in Path("runs").iterdir() if (p / "spec.json").exists()]
    folder = RunFolder(path.resolve())
    wait_until_begun(folder)
    (folder.path / "go").touch()
    assert call("runs", "wait", "last", "--timeout", f"{LIMIT_S}").returncode == 0


def test_a_run_is_cancelled_from_another_terminal_and_saves_what_it_has() -> None:
    folder = detached()
    wait_until_begun(folder)
    done = call("runs", "cancel", folder.path.name)
    assert (done.returncode, done.stdout) == (0, f"{folder.path.name}  cancelled\n")
    assert [artifact.path for artifact in folder.read_result().artifacts] == ["artifacts/saved.txt"]
    goes_on = detached()
    wait_until_begun(goes_on)
    again = call("runs", "cancel", folder.path.name, goes_on.path.name)
    assert (again.returncode, again.stdout) == (2, f"{goes_on.path.name}  cancelled\n")
    assert "has ended with status cancelled" in again.stderr
    assert call("runs", "wait", "last").returncode == 130


def test_a_run_in_the_foreground_is_cancelled_at_once_too() -> None:
    with subprocess.Popen([*COMMAND, "run", "waiting.py:waits"], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        assert call("runs", "cancel", "--at-once", "last").returncode == 0
        client.stdout.read()
    assert client.returncode == 130


def test_ctrl_c_ends_following_but_not_the_run() -> None:
    folder = detached()
    with subprocess.Popen(
        [*COMMAND, "runs", "logs", "-f", "last"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "begun\n"
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=LIMIT_S)
    assert follower.returncode == 130
    assert "goes on" in said
    assert folder.outcome().status is RunStatus.RUNNING
    assert call("runs", "wait", "last", "--timeout", "1s").returncode == 124
    (folder.path / "go").touch()
    assert call("runs", "wait", "last").returncode == 0


def test_a_supervisor_that_is_killed_leaves_no_process_and_no_running_run() -> None:
    folder = detached()
    wait_until_begun(folder)
    supervisor = supervisor_of(folder)
    processes = [supervisor, *supervisor.children(recursive=True)]
    supervisor.kill()
    _, left = psutil.wait_procs(processes, LIMIT_S)
    assert left == []
    assert folder.outcome().status in (RunStatus.CANCELLED, RunStatus.ERROR)
    assert call("runs", "wait", "last").returncode != 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["waiting.py:waits", "wrod=x"], "did you mean 'word'"),
        (["waiting.py:wait"], "did you mean 'waits'"),
        (["waiting.py:waits", "--gpu", "a10gg"], "did you mean 'a10g'"),
        (["waiting.py:waits", "--dry-run"], "can't go with --dry-run"),
        (["waiting.py:waits", "--pip", "numpy"], "--pip goes with --backend modal"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_detached(arguments: list[str], said: str) -> None:
    done = call("run", *arguments, "--detach")
    assert done.returncode == 2
    assert said in done.stderr
    assert not Path("runs").exists() or not [*Path("runs").glob("2*")]


def test_a_secret_in_the_config_of_a_detached_run_is_written_nowhere() -> None:
    folder = detached("token=hunter2hunter2")
    (folder.path / "go").touch()
    assert call("runs", "wait", "last").returncode == 0
    for file in folder.path.rglob("*"):
        if file.is_file():
            assert b"hunter2hunter2" not in file.read_bytes(), file


def test_a_detached_run_is_tried_again_and_waited_for_to_its_last_attempt(project: Path) -> None:
    (project / "waiting.py").write_text(WAITS.replace('    print("begun"', KILLED_AT_FIRST))
    folder = detached("word=fine", "--retries", "1")
    wait_until_begun(folder)
    (folder.path / "go").touch()
    assert call("runs", "wait", "last").returncode == 0
    assert [a.status for a in folder.read_result().attempts] == ["error", "success"]
