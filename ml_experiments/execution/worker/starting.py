"""Starts the process of a template, before anything else is imported where that is known to help.

Light to import: until the process is started, nothing of it goes on beside what a command imports.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from ml_experiments.settings import worker_environment

_TEMPLATE = "ml_experiments.execution.worker.template"
_early: StartedProcess | None = None


class StartedProcess(NamedTuple):
    """A process that waits to be told what to import.

    Attributes:
        process: The process.
        connection: The connection to it.
        output: What it prints.
        search_path: What was added at the end of its `sys.path`.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket
    output: BinaryIO
    search_path: tuple[str, ...]


def start_process(search_path: tuple[str, ...]) -> StartedProcess:
    """Start a process that imports what every template needs, and then waits.

    Args:
        search_path: What to add at the end of `sys.path`.

    Raises:
        OSError: If the system has no room for another process.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            output = _open_output()
            process = subprocess.Popen(
                command_for(_TEMPLATE, search_path, f"{theirs.fileno()}", *search_path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=worker_environment(None, None),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return StartedProcess(process, ours, output, search_path)


def start_early() -> None:
    """Start the process that this one will need; it ends with this one if it is not taken."""
    global _early
    with contextlib.suppress(OSError):  # told when a process is needed
        _early = start_process(current_search_path())


def take_early(search_path: tuple[str, ...]) -> StartedProcess | None:
    """Return the process that was started early, once, if its search path is this one."""
    global _early
    early, _early = _early, None
    if early is not None and early.search_path != search_path:
        early.connection.close()  # it ends
        return None
    return early


def current_search_path() -> tuple[str, ...]:
    """Return where processes of this one find modules."""
    return tuple(filter(None, sys.path))


def command_for(module: str, search_path: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that calls a module's `main()`.

    Not `-m`, which would make the module the `__main__` that `multiprocessing` imports again in
    each process that it spawns. With `-P`, no module of the working folder hides a standard one.

    Args:
        module: The module.
        search_path: What to add at the end of `sys.path`.
        *arguments: The command line's arguments.
    """
    path = list(search_path)
    code = (
        # what is imported here lives as long as the process: looking through it finds no garbage
        f"import gc, sys; gc.disable(); sys.path += {path!r}; from {module} import main; "
        "gc.freeze(); gc.enable(); main()"
    )
    return [sys.executable, "-P", "-c", code, *arguments]


def _open_output() -> BinaryIO:
    """Open a file for what the import prints, which is part of each run's log."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("output"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()
