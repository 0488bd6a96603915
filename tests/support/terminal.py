"""A command on a pseudo-terminal, whose output is read as it comes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

WAIT_S = 30.0
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")


class Terminal:
    """A command that has a pseudo-terminal for its input and, unless told otherwise, its output.

    Args:
        command: The command.
        **options: Options of `subprocess.Popen`, such as another place for `stdout`.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._leader, follower = pty.openpty()
        self.resize(80)
        options["env"] = {**os.environ, "TERM": "xterm", **options.get("env", {})}
        self.process = subprocess.Popen(
            command, **{"stdin": follower, "stdout": follower, "stderr": follower, **options}
        )
        os.close(follower)
        self.shown = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def resize(self, width: int) -> None:
        """Change the number of columns."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def read_until(self, mark: str, *, after: str = "") -> None:
        """Read until the command has printed this, after something else."""
        deadline = time.monotonic() + WAIT_S
        while mark.encode() not in self.shown[self.shown.find(after.encode()) :]:
            assert self._read(deadline), f"ended without {mark!r}: {self.shown.decode()}"

    def write(self, keys: str) -> None:
        """Type something."""
        os.write(self._leader, keys.encode())

    def read_all(self) -> str:
        """Read to the end; return all that was printed."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        self.process.wait(WAIT_S)
        return self.shown.decode()

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._leader], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"nothing came in time: {self.shown.decode(errors='replace')}"
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # the command has ended
            return False
        self.shown += data
        return bool(data)


class Tmux:
    """A terminal of tmux: what it shows is what a person sees.

    Args:
        command: What the shell executes.
        width: Its columns.
        folder: The working folder.
    """

    def __init__(self, command: str, width: int, folder: Path) -> None:
        self._socket = Path(tempfile.mkdtemp(prefix="tmux-")) / "socket"
        script = f"{command}; tmux -S {self._socket} wait-for -S ended; read -r _"
        self._call(
            *("-f", os.devnull, "new-session", "-d", "-x", str(width), "-y", "40"),
            *("-c", str(folder), script),
        )

    def __enter__(self) -> Tmux:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self._call("kill-server")
        shutil.rmtree(self._socket.parent)

    def screen(self) -> list[str]:
        """Return the lines that are shown."""
        return self._call("capture-pane", "-p").rstrip("\n").split("\n")

    def wait_until(self, shows: Callable[[list[str]], object]) -> None:
        """Wait until the screen is as it should be."""
        deadline = time.monotonic() + WAIT_S
        while not shows(self.screen()):
            assert time.monotonic() < deadline, "\n".join(self.screen())
            time.sleep(0.05)

    def type(self, key: str) -> None:
        """Press a key, such as Enter or C-c."""
        self._call("send-keys", key)

    def wait(self) -> list[str]:
        """Wait for the command's end; return the lines that are shown."""
        self._call("wait-for", "ended")
        return self.screen()

    def _call(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        ).stdout


def on_terminal(*arguments: str, columns: int = 80, code: int = 0) -> str:
    """Run `ml-experiments` on a terminal and return all that it printed."""
    controller, terminal = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "ml_experiments", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(controller)
    assert running.wait(60) == code, shown.decode()
    return shown.decode().replace("\r\n", "\n")
