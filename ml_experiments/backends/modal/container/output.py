"""Captures what the experiment prints in a container, and sends events to the client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_experiments.backends.modal.container import log_forwarder as log_relay
from ml_experiments.settings import whole_environment


class ContainerOutput:
    """Sends what this process prints through a log relay, one run after the other."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", log_relay.__name__, f"{read_end}", f"{theirs.fileno()}"],
                pass_fds=(read_end, theirs.fileno()),
                env={
                    **whole_environment(),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        os.close(read_end)
        self._replies = self._control.makefile("rb")
        self._lock = threading.Lock()  # an experiment may log from several threads
        self._asked = 0

    def send(self, event: dict[str, Any]) -> None:
        """Print one event as a line of its own."""
        self._ask({"event": event})

    @contextlib.contextmanager
    def capture(self, log_file: Path, secrets: Iterable[str]) -> Iterator[None]:
        """Take over file descriptors 1 and 2 for the length of a block.

        Args:
            log_file: Where the output goes, besides the container's own.
            secrets: Values that are replaced in it.
        """
        self._ask({"begin": str(log_file), "secrets": list(secrets)})
        before = os.dup(1), os.dup(2)
        _point_output_at(self._write_end, self._write_end)
        try:
            yield
        finally:
            _point_output_at(*before)
            for descriptor in before:
                os.close(descriptor)
            self._ask({"end": True})

    def _ask(self, request: dict[str, Any]) -> None:
        with self._lock:
            self._asked += 1
            number = f"{self._asked}\n".encode()
            line = json.dumps({**request, "number": self._asked}).encode() + b"\n"
            self._control.sendall(line)
            # a cancellation may have left the reply to an earlier request unread
            while (answered := self._replies.readline()) != number:
                if not answered:
                    raise BrokenPipeError(
                        "the process that relays this container's output has ended"
                    )


def _point_output_at(stdout: int, stderr: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
