"""Executes a run in the ranks that a launcher starts, and follows them; in the run's worker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_experiments.execution.events import Event, event_from_json
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.interruptions import handled_interrupts
from ml_experiments.execution.launch.output import RankOutput
from ml_experiments.execution.launch.ranks import Rank, RankOutcome, outcome_of
from ml_experiments.execution.worker.death import crash_report, describe_death_in_run, read_log_tail
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.execution.worker.process import command_for
from ml_experiments.experiment.checkpoints import latest_checkpoint
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.settings import launcher_environment

_AGENT = "ml_experiments.execution.launch.agent"
_RANK = "ml_experiments.execution.launch.rank"
_TICK_S = 0.05
_READ_SIZE = 1 << 16


def run_in_ranks(message: RunMessage, emit: Callable[[Event], None], hints: Hints) -> RankOutcome:
    """Execute a run in as many processes as its spec says; return how it has ended.

    An interrupt of this process is passed on to the ranks.

    Args:
        message: The run.
        emit: Receives the events of rank 0.
        hints: What the user can do about an error, here.
    """
    # the ranks begin later than the run does, whose time it is
    began_at = time.monotonic() if message.began_at is None else message.began_at
    message = dataclasses.replace(message, began_at=began_at)
    # a short name, for the path of a socket has at most 107 characters
    with (
        tempfile.TemporaryDirectory(prefix="ranks-") as place,
        _Launch(message, emit, hints, Path(place)) as launch,
        handled_interrupts(launch.interrupt),
    ):
        return launch.follow()


class _Launch:
    """The launcher's process, and the ranks that it has started."""

    def __init__(
        self, message: RunMessage, emit: Callable[[Event], None], hints: Hints, place: Path
    ) -> None:
        spec = message.spec
        assert spec.launch is not None
        assert spec.nproc_per_node is not None
        self._spec, self._launcher, self._count = spec, spec.launch, spec.nproc_per_node
        self._message, self._emit, self._hints = message, emit, hints
        self._first_message = {"run": message.to_dict(), "checkpoint": _newest_checkpoint(message)}
        self._redactor = Redactor(message.secrets)
        self._ranks: list[_RankProcess] = []
        self._is_interrupted = False
        self._selector = selectors.DefaultSelector()
        self._place, path = place, str(place / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(self._count)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._report, report_end = os.pipe()
        search_path = tuple(filter(None, sys.path))
        rank = command_for(_RANK, search_path, path)
        # the output of a rank is part of the log until it has connected
        self._agent = subprocess.Popen(
            command_for(
                _AGENT, search_path, self._launcher, f"{self._count}", f"{report_end}", *rank
            ),
            stdin=subprocess.DEVNULL,
            pass_fds=[report_end],
            env=launcher_environment(self._count),
        )
        os.close(report_end)

    def __enter__(self) -> _Launch:
        return self

    def __exit__(self, *_exception: object) -> None:
        for rank in self._ranks:
            rank.close()
        self._selector.close()
        self._listener.close()
        os.close(self._report)

    def follow(self) -> RankOutcome:
        """Follow the launcher and the ranks until all have ended."""
        is_over = False
        while not is_over:
            code = self._agent.poll()  # first, so that what comes before its end is read
            if code is not None and code < 0:
                self._kill_ranks()
            is_over = code is not None and all(rank.is_closed for rank in self._ranks)
            for key, _ in self._selector.select(0 if is_over else _TICK_S):
                key.data()
            for rank in self._ranks:
                rank.output.show_lines()
        for rank in self._ranks:
            rank.output.show_rest()
        return self._outcome()

    def interrupt(self) -> None:
        """Interrupt all ranks, also those that have not connected yet."""
        self._is_interrupted = True
        for rank in self._ranks:
            rank.signal(signal.SIGINT)

    def _kill_ranks(self) -> None:
        """End the ranks of a launcher that was killed, which nothing else would."""
        for rank in self._ranks:
            rank.signal(signal.SIGKILL)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        rank = _RankProcess(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(rank))

    def _read(self, rank: _RankProcess) -> None:
        for message in rank.read():
            if "hello" in message:
                rank.pid, rank.rank = message["pid"], parse_record(Rank, message["hello"])
                rank.output = RankOutput(rank.rank.number)
                rank.send(self._first_message, rank.output.descriptor)
                self._ranks.append(rank)
                if len(self._ranks) == self._count:
                    # now, for this process may be killed
                    shutil.rmtree(self._place, ignore_errors=True)
                if self._is_interrupted:
                    rank.signal(signal.SIGINT)
            elif "outcome" in message:
                rank.outcome = outcome_of(message)
            elif rank.rank.is_first:
                self._emit(event_from_json(message))
        if rank.is_closed:
            self._selector.unregister(rank.connection)
            rank.close()

    def _outcome(self) -> RankOutcome:
        """Return the outcome of rank 0, with the error of the rank that failed first, if any."""
        first = next((r.outcome for r in self._ranks if r.rank.is_first), None)
        outcome = first or RankOutcome(time.monotonic())
        usage = _use_of_all(r.outcome.usage for r in self._ranks if r.outcome is not None)
        return dataclasses.replace(outcome, error=self._error(), usage=usage)

    def _error(self) -> RunError | None:
        if self._agent.returncode < 0:
            code, what = self._agent.returncode, self._launcher
            error = describe_death_in_run(code, self._spec, self._log_tail(), self._hints)
            return _of(what, error)
        failed = [rank for rank in self._ranks if rank.failed_at is not None]
        if failed:
            return self._error_of(min(failed, key=lambda rank: rank.failed_at or 0.0))
        if len(self._ranks) == self._count:
            return None
        return RunError(
            ErrorKind.INFRASTRUCTURE,
            "LaunchError",
            f"{self._launcher} ended with code {self._agent.returncode} before the experiment "
            f"began in all {self._count} ranks",
            self._log_tail(),
            "see the traceback; `ml-experiments doctor` checks the installation",
        )

    def _error_of(self, rank: _RankProcess) -> RunError:
        error = rank.outcome.error if rank.outcome is not None else None
        if error is None:
            codes = json.loads(os.read(self._report, _READ_SIZE) or b"{}")
            code = codes.get(str(rank.rank.number), -signal.SIGKILL)
            tail = self._redactor.redact_text(crash_report(rank.output.file))
            error = describe_death_in_run(code, self._spec, tail, self._hints)
        return _of(f"rank {rank.rank.number}", error)

    def _log_tail(self) -> str:
        return read_log_tail(Path(self._message.output), self._redactor)


class _RankProcess:
    """A rank as it is seen from the worker.

    Attributes:
        connection: The connection to it.
        rank: Which it is; set with `pid` and `output` by its first message.
        outcome: How it has ended.
        is_closed: Whether its process has ended, or closed the connection.
    """

    rank: Rank
    pid: int
    output: RankOutput

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.outcome: RankOutcome | None = None
        self.is_closed = False
        self._closed_at = 0.0
        self._received = b""

    @property
    def failed_at(self) -> float | None:
        """When it has failed; None if it hasn't."""
        if self.outcome is None:
            return self._closed_at
        return None if self.outcome.error is None else self.outcome.ended_at

    def read(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived."""
        try:
            data = self.connection.recv(_READ_SIZE)
        except OSError:  # reset
            data = b""
        if not data:
            self.is_closed, self._closed_at = True, time.monotonic()
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, message: dict[str, Any], descriptor: int) -> None:
        """Send a message with a file."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # that it has ended is noticed when it is read
            sent = socket.send_fds(self.connection, [data], [descriptor])
            self.connection.sendall(data[sent:])

    def signal(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if not self.is_closed and self.outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _newest_checkpoint(message: RunMessage) -> dict[str, Any] | None:
    folder = RunFolder(Path(message.folder)).checkpoint_dir
    checkpoint = latest_checkpoint(folder)
    return None if checkpoint is None else checkpoint.to_dict()


def _of(what: str, error: RunError) -> RunError:
    traceback = error.traceback and f"{what}:\n{error.traceback}"
    return dataclasses.replace(error, message=f"{what}: {error.message}", traceback=traceback)


def _use_of_all(usages: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what ranks used of the machine: memory in all, and that of the GPU with the most."""
    use: dict[str, Any] = {}
    for each in usages:
        host = use.get("peak_memory_bytes", 0) + each.get("peak_memory_bytes", 0)
        gpu = max(use.get("peak_gpu_memory_bytes", 0), each.get("peak_gpu_memory_bytes", 0))
        use = {**each, "peak_memory_bytes": host}
        if gpu:
            use["peak_gpu_memory_bytes"] = gpu
    return use
