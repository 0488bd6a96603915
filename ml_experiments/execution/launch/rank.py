"""One rank: a process that a launcher has started; its argument is the socket of its worker."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from ml_experiments.execution.events import Event, event_to_json
from ml_experiments.execution.execute import execute_rank
from ml_experiments.execution.launch.ranks import Rank
from ml_experiments.execution.worker.child import load_hints, set_up_process
from ml_experiments.execution.worker.ending import end_process
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.execution.worker.sources import LoadedSources
from ml_experiments.experiment.checkpoints import Checkpoint
from ml_experiments.runs.records import parse_record
from ml_experiments.settings import launched_rank

_MAX_PIECE = 1 << 20


def main() -> NoReturn:
    """Execute the run of the worker as one of its ranks."""
    set_up_process()
    interrupts = _Interrupts()
    path = sys.argv[1]
    sys.argv = [""]  # an experiment has no command line
    sources = LoadedSources()
    sources.record_imports()
    rank = Rank(*launched_rank())
    worker = _Worker(path, rank)
    run, checkpoint = worker.receive_run()
    outcome = execute_rank(
        run,
        rank,
        emit=worker.emit,
        hints=load_hints(run.hints),
        on_begin=interrupts.begin,
        checkpoint=checkpoint,
    )
    interrupts.end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    worker.send(outcome.to_dict())
    if outcome.error is not None and not outcome.was_cut_short:
        os._exit(1)  # at once: the launcher ends the others, which may wait for this one
    # one that was cut short has not failed, so that the others may save what they have
    end_process(sources)


class _Worker:
    """The connection to the worker that has started the launcher."""

    def __init__(self, path: str, rank: Rank) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        self.send({"hello": dataclasses.asdict(rank), "pid": self._pid})

    def receive_run(self) -> tuple[RunMessage, Checkpoint | None]:
        """Return the run, and its newest checkpoint when it began.

        The output of this process goes to a file of its own from now on.
        """
        data, output = b"", list[int]()
        while not data.endswith(b"\n"):
            piece, descriptors, _, _ = socket.recv_fds(self._connection, _MAX_PIECE, 1)
            if not piece:
                sys.exit("the worker of this rank has ended")
            data, output = data + piece, [*output, *descriptors]
        for standard in (1, 2):
            os.dup2(output[0], standard)
        os.close(output[0])
        threading.Thread(target=self._end_with_it, daemon=True).start()
        message = json.loads(data)
        checkpoint = message["checkpoint"]
        return (
            parse_record(RunMessage, message["run"]),
            None if checkpoint is None else Checkpoint.from_dict(checkpoint),
        )

    def emit(self, event: Event) -> None:
        """Report what happens in the run."""
        self.send(event_to_json(event))

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, unless a child that the experiment has forked does."""
        if os.getpid() == self._pid:
            with self._lock, suppress(OSError):  # that the worker is gone is noticed below
                self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _end_with_it(self) -> None:
        """End this process when the worker is gone."""
        with suppress(OSError):
            self._connection.recv(1)  # nothing more is sent
        os._exit(1)


class _Interrupts:
    """Interrupts of this process: one that comes before the run begins counts then."""

    def __init__(self) -> None:
        self._came = self._has_begun = False
        signal.signal(signal.SIGINT, self._on_interrupt)

    def begin(self) -> None:
        """Let them interrupt the experiment from now on."""
        self._has_begun = True
        if self._came:
            signal.raise_signal(signal.SIGINT)

    def end(self) -> None:
        """Let them do nothing from now on."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._has_begun:
            raise KeyboardInterrupt
