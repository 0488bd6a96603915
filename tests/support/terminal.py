"""Runs the command on a terminal of a given width."""

from __future__ import annotations

import os
import pty
import subprocess
import sys


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
