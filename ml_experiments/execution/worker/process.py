"""A worker process seen from outside: started, spoken to, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ml_experiments.settings import worker_environment

START_LIMIT_S = 60.0
END_LIMIT_S = 5.0
_READ_SIZE = 1 << 16


class WorkerProcess:
    """One worker process and the connection to it."""

    def __init__(self, gpu: str | None, threads: int | None, log_file: Path) -> None:
        self.gpu = gpu
        self._connection, theirs = socket.socketpair()
        self._selector = selectors.DefaultSelector()  # select() knows no descriptor above 1,023
        self._selector.register(self._connection, selectors.EVENT_READ)
        self._received = b""
        with theirs, log_file.open("ab") as output:
            command = [sys.executable, "-P", "-m", "ml_experiments.execution.worker.main"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=worker_environment(gpu, threads),
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """What the process ended with, negative for a signal; None while it lives."""
        return self._process.poll()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; a worker that has died is noticed when its events are read."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def read_events(self, wait_s: float) -> Iterator[dict[str, Any]]:
        """Yield the events that arrived, after waiting for the first at most so long.

        Raises:
            EOFError: If the worker has died and all its events were read.
        """
        if not self._selector.select(wait_s):
            return
        try:
            data = self._connection.recv(_READ_SIZE)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        yield from (json.loads(line) for line in lines)

    def wait_for_exit(self) -> int:
        """Return the exit code of a process whose connection has closed."""
        try:
            return self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        descendants = self._descendants()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in descendants:  # those that left the process group
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._selector.close()
        self._connection.close()

    def close(self) -> None:
        """Let an idle worker end by itself, with what it started; make sure that it has."""
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_LIMIT_S)
        self.kill()

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
