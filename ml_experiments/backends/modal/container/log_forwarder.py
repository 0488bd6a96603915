"""A small process beside a container's own: redacts what a run prints, and passes it on.

It is a process so that output gets out when the container's own process crashes, and because
a pipe that the same process reads would block for good a native library that prints while it
keeps Python from running. It writes to the run's log file and to the container's output, where
Modal's live logs come from, and there puts the events of the run between the lines.

Started as `python -m ml_experiments.backends.modal.container.log_forwarder OUTPUT CONTROL`. OUTPUT
is the read end of a pipe. CONTROL is one end of a socket pair, on which each JSON line is answered
by its `number`:

    {"begin": path, "secrets": […]}   from now on, output belongs to this log file
    {"event": {…}}                    print an event, after what was printed before it
    {"end": true}                     everything printed so far has to be in the log file
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any, BinaryIO

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor

EVENT_MARK = b"ml-experiments: "
_CHUNK = 1 << 16
_CHUNKS_OF_A_PIPE = 16  # a pipe holds 64 KiB, and 1 MiB at most where its owner asks for that


class LogRelay:
    """Reads the output of runs, one after the other."""

    def __init__(self, output: int, control: socket.socket) -> None:
        self._output = output
        self._control = control
        self._redactor = StreamRedactor(Redactor(()))
        self._log: BinaryIO | None = None
        self._at_line_start = True

    def serve(self) -> None:
        """Pass output on until the other side of the control socket is closed."""
        os.set_blocking(self._output, False)
        requests = self._control.makefile("rb")
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                self._drain()
                if self._control.fileno() in ready:
                    line = requests.readline()
                    if not line:  # the container's process is gone
                        self._drain()
                        self._end()
                        return
                    self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        match request:
            case {"begin": path, "secrets": secrets}:
                self._redactor = StreamRedactor(Redactor(secrets))
                self._log = open(path, "ab", buffering=0)  # noqa: PTH123, SIM115 - until `end`
            case {"event": event}:
                self._print_event(event)
            case {"end": True}:
                self._drain()
                self._end()
        self._control.sendall(f"{request['number']}\n".encode())

    def _drain(self) -> None:
        """Pass on what the pipe holds; not for ever, where more comes all the time."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_CHUNKS_OF_A_PIPE):
                data = os.read(self._output, _CHUNK)
                if not data:
                    return
                self._pass_on(self._redactor.feed(data))

    def _end(self) -> None:
        self._pass_on(self._redactor.flush())
        if self._log is not None:
            self._log.close()
            self._log = None

    def _pass_on(self, data: bytes) -> None:
        if not data:
            return
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full volume must not end the live log
                self._log.write(data)
        _write(data)
        self._at_line_start = data.endswith(b"\n")

    def _print_event(self, event: dict[str, Any]) -> None:
        line = EVENT_MARK + json.dumps(event).encode() + b"\n"
        _write(line if self._at_line_start else b"\n" + line)
        self._at_line_start = True


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    """Serve the two file descriptors that the arguments name."""
    # it ends when the container's process does, not by the signals that are meant for that
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    LogRelay(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))).serve()


if __name__ == "__main__":
    main()
