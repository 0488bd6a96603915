"""What the commands `emulator run` and `emulator serve` do."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from modal_emulator.containers.interpreter import INTERPRETER
from modal_emulator.emulator import Emulator
from modal_emulator.requested_faults import RequestedFaults


class CommandNotFoundError(LookupError):
    """Raised when the command to run is not a program of this machine."""


def run_command(
    command: Sequence[str], *, state_dir: Path | None = None, faults: RequestedFaults | None = None
) -> int:
    """Run a command against a server that lives as long as it, and return its exit code.

    Raises:
        CommandNotFoundError: when there is no such program; no server was started.
    """
    # `modal` stands beside this Python even when its environment is not activated.
    scripts = str(INTERPRETER.parent)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), scripts])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise CommandNotFoundError(f'There is no command "{command[0]}" on the PATH.')
    with Emulator(state_dir) as emulator:
        (faults or RequestedFaults()).arm(emulator)
        environment = {**os.environ, **emulator.environment, "PATH": path}
        process = subprocess.Popen([program, *command[1:]], env=environment)
        with _passing_signals_on(process):
            exit_code = process.wait()
    # As a shell reports a program that a signal ended.
    return exit_code if exit_code >= 0 else 128 - exit_code


@contextmanager
def _passing_signals_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stay alive on signals until the command has dealt with them."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # Ctrl-C on a terminal reaches the command by itself.
        if number != signal.SIGINT or not sys.stdin.isatty():
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(
    announce: Callable[[str], None],
    *,
    state_dir: Path | None = None,
    port: int = 0,
    faults: RequestedFaults | None = None,
) -> None:
    """Serve until a signal; `announce` gets the shell lines that point programs here."""
    done = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: done.set()) for number in numbers}
    try:
        with Emulator(state_dir, port=port) as emulator:
            (faults or RequestedFaults()).arm(emulator)
            for name, value in emulator.environment.items():
                announce(f"export {name}={shlex.quote(value)}")
            done.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
