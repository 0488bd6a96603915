"""`modal container exec` and `modal shell`, as a person uses them in a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest
import shell_app

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]


def modal_in_terminal(*arguments: str) -> Terminal:
    """Start the `modal` command on a terminal of 24 rows and 80 columns."""
    return Terminal([sys.executable, "-m", "modal", *arguments], cwd=MODAL_APPS)


@pytest.fixture(scope="module")
def task_id(modal_emulator_server: Emulator) -> Iterator[str]:
    """The id of a container that runs a function."""
    with shell_app.app.run():
        call = shell_app.wait.spawn(600)

        def running() -> list[str]:  # the server has containers of other tests, too
            [found] = [c for c in modal_emulator_server.calls() if c.call_id == call.object_id]
            ids = {each.task_id for each in found.inputs}
            there = modal_emulator_server.containers()
            return [each.task_id for each in there if each.task_id in ids and each.pid]

        wait_until(running, "the start of a container")
        yield running()[0]
        call.cancel(terminate_containers=True)


def test_a_command_has_the_files_variables_and_folder_of_a_container(
    task_id: str, run_modal: RunModal
) -> None:
    command = 'pwd; ls *.py; echo "$WORD $OMP_NUM_THREADS"; echo committed > /data/file; nproc'
    done = run_modal("container", "exec", task_id, "--", "sh", "-c", command)
    assert done.stdout.split() == ["/root", "shell_app.py", "grüße", "1", "1"]
    # without a commit of the function: the volumes of containers are committed in the background
    assert b"".join(shell_app.data.read_file("file")) == b"committed\n"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["head", "-c", "3000000", "/dev/zero"], "\0" * 3_000_000),
        (["no-such-command"], "no-such-command: No such file or directory\n"),
    ],
    ids=["output of some size", "no such command"],
)
def test_all_output_of_a_command_arrives(
    task_id: str, run_modal: RunModal, command: list[str], shown: str
) -> None:
    assert run_modal("container", "exec", task_id, "--", *command).stdout == shown


def test_a_shell_in_a_running_container_is_a_terminal(task_id: str) -> None:
    with modal_in_terminal("shell", task_id, "--cmd", "bash --norc") as terminal:
        terminal.read_until("# ")
        terminal.write("stty size; echo $TERM; export KEPT=yes\r")
        terminal.read_until("24 80\r\nxterm\r\n")
        # Ctrl-C ends the command in the foreground, which says when it is there, not the shell
        terminal.write("sh -c 'printf %s%s rea dy; exec cat'\r")
        terminal.read_until("ready")
        terminal.write("\x03")
        terminal.read_until("^C")
        terminal.read_until("# ", after="^C")  # what is typed before is lost with the interrupt
        terminal.write("echo code $? $KEPT\r")
        terminal.read_until("code 130 yes\r\n")
        # Ctrl-D ends the input, and the shell
        terminal.write("sh -c 'printf %s%s aga in; exec cat'\r")
        terminal.read_until("again")
        terminal.write("line\r\x04")
        terminal.read_until("line\r\nline\r\n")
        terminal.read_until("# ", after="line\r\nline\r\n")
        terminal.write("\x04")
        assert terminal.read_all().endswith("exit\r\n")
        # Modal's client does not say how the shell ended
        assert terminal.process.returncode == 0


def test_a_command_without_output_ends_in_a_terminal_too(task_id: str) -> None:
    with modal_in_terminal("container", "exec", task_id, "true") as terminal:
        assert "Failed" not in terminal.read_all()
        assert terminal.process.returncode == 0


def test_a_shell_ends_with_its_container(modal_emulator: Emulator, run_modal: RunModal) -> None:
    with modal_in_terminal("shell", "shell_app.py::wait", "--cmd", "bash --norc") as terminal:
        terminal.read_until("# ")
        terminal.write("echo $WORD; echo kept > /data/of-shell\r")
        terminal.read_until("grüße\r\n")
        (shell,) = [
            each
            for each in modal_emulator.containers()
            if each.state == "running" and each.function_name == "modal shell"
        ]
        assert shell.task_id in run_modal("container", "list", "--json").stdout
        run_modal("container", "stop", "--yes", shell.task_id)
        terminal.read_all()
    wait_until(lambda: not Path(f"/proc/{shell.pid}").exists(), "the end of the container")
    again = run_modal("container", "stop", "--yes", shell.task_id, check=False)
    assert f"'{shell.task_id}' is already stopped" in again.stdout + again.stderr


def test_what_a_shell_writes_to_a_volume_is_committed_at_its_end(run_modal: RunModal) -> None:
    command = "echo $WORD > /data/written; pwd; ls"
    done = run_modal("shell", "shell_app.py::wait", "--no-pty", "--cmd", command)
    assert done.stdout.split() == ["/root", "shell_app.py"]
    assert b"".join(shell_app.data.read_file("written")).decode() == "grüße\n"


def test_a_shell_has_the_gpu_of_its_function(modal_emulator: Emulator, run_modal: RunModal) -> None:
    command = ["shell", "shell_app.py::on_gpu", "--no-pty", "--cmd", "echo $MODAL_EMULATOR_GPU"]
    assert run_modal(*command).stdout == "T4\n"
    modal_emulator.limit_gpu("T4", 0)
    done = run_modal(*command, check=False)
    assert (done.returncode, "The shell needs a T4, and none is free." in done.stderr) == (1, True)


def test_options_of_a_shell_are_used_or_warned_of(run_modal: RunModal) -> None:
    options = ["--volume", "shell-data", "--cpu", "1", "--memory", "512", "--region", "eu"]
    command = 'ls -d /mnt/shell-data; echo "$OMP_NUM_THREADS"'
    done = run_modal("shell", *options, "--no-pty", "--cmd", command)
    assert done.stdout.split() == ["/mnt/shell-data", "1"]
    assert "records `region` of modal shell but it has no effect" in " ".join(done.stderr.split())


def test_a_client_that_is_killed_leaves_no_shell(modal_emulator: Emulator) -> None:
    with modal_in_terminal("shell", "shell_app.py::wait") as terminal:
        terminal.read_until("# ")
        terminal.process.send_signal(signal.SIGKILL)
    shells = [each for each in modal_emulator.containers() if each.function_name == "modal shell"]
    wait_until(
        lambda: (
            {
                each.state
                for each in modal_emulator.containers()
                if each.task_id == shells[-1].task_id
            }
            == {"ended"}
        ),
        "the end of the shell",
    )


def test_what_is_not_there_is_said(modal_emulator: Emulator, run_modal: RunModal) -> None:
    for command in (["container", "exec", "ta-01", "ls"], ["shell", "ta-01"]):
        done = run_modal(*command, check=False)
        assert (done.returncode, "Container 'ta-01' not found" in done.stderr) == (1, True)
    app = modal.App.lookup("for-a-sandbox", create_if_missing=True)
    with pytest.raises(modal.exception.Error, match="only `modal shell`"):
        modal.Sandbox.create("sleep", "100000", app=app)
