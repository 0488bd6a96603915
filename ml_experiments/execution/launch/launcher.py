"""Executes a run in the ranks that a launcher starts, and follows them; in the run's worker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_experiments.execution.events import Event, event_from_json
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.interruptions import handled_interrupts
from ml_experiments.execution.launch.nodes import FirstNode, OtherNode
from ml_experiments.execution.launch.output import RankOutput
from ml_experiments.execution.launch.ranks import Connection, Rank, RankOutcome, outcome_of
from ml_experiments.execution.worker.death import crash_report, describe_death_in_run, read_log_tail
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.execution.worker.starting import command_for, current_search_path
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
# the launcher gives ranks 10 s to end
_STOP_LIMIT_S = 12.0
# when a machine was lost, the platform takes the others away, too; otherwise the run has failed
_TAKEN_LIMIT_S = 30.0


def run_in_ranks(
    message: RunMessage,
    emit: Callable[[Event], None],
    hints: Hints,
    other: OtherNode | None = None,
) -> RankOutcome:
    """Execute a run in as many processes as its spec says; return how it has ended.

    An interrupt of this process is passed on to the ranks, if it is the run's worker.

    Args:
        message: The run.
        emit: Receives the events of rank 0.
        hints: What the user can do about an error, here.
        other: Which of the run's other machines this one is; None for the one with its worker.
    """
    # the ranks begin later than the run does, whose time it is
    began_at = time.monotonic() if message.began_at is None else message.began_at
    message = dataclasses.replace(message, began_at=began_at)
    # a short name, for the path of a socket has at most 107 characters
    with (
        tempfile.TemporaryDirectory(prefix="ranks-") as place,
        contextlib.nullcontext(other) if other else contextlib.closing(FirstNode(message)) as node,
        _Launch(message, emit, hints, Path(place), node) as launch,
        contextlib.nullcontext() if other else handled_interrupts(launch.on_interrupt),
    ):
        try:
            return launch.follow()
        except Exception:
            raise
        except BaseException as e:  # the platform cancels, as it does at node 0, or takes this away
            if other and isinstance(e, KeyboardInterrupt):
                other.report_taken()
            launch.follow()  # node 0 interrupts the ranks
            raise


class _Launch:
    """The launcher's process, and the ranks that it has started."""

    def __init__(
        self,
        message: RunMessage,
        emit: Callable[[Event], None],
        hints: Hints,
        place: Path,
        node: FirstNode | OtherNode,
    ) -> None:
        spec = message.spec
        assert spec.launch is not None
        assert spec.nproc_per_node is not None
        self._spec, self._launcher, self._count = spec, spec.launch, spec.nproc_per_node
        self._message, self._emit, self._hints, self._node = message, emit, hints, node
        self._first_message = {"run": message.to_dict(), "checkpoint": _newest_checkpoint(message)}
        self._redactor = Redactor(message.secrets)
        self._ranks: list[_RankProcess] = []
        self._is_interrupted = self._is_taken = False
        self._stopped_at = math.inf
        self._selector = selectors.DefaultSelector()
        node.register(self._selector)
        self._place, path = place, str(place / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(self._count)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._report, report_end = os.pipe()
        search_path = current_search_path()
        rank = command_for(_RANK, search_path, path)
        meeting = json.dumps(dataclasses.asdict(node.meeting))
        arguments = (self._launcher, f"{self._count}", f"{report_end}", meeting, *rank)
        # the output of a rank is part of the log until it has connected
        with Path(message.output).open("ab") as log:
            self._agent = subprocess.Popen(
                command_for(_AGENT, search_path, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[report_end],
                env=launcher_environment(self._count),
            )
        os.close(report_end)

    def __enter__(self) -> _Launch:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._agent.kill()  # its ranks end with the connections; what has ended is left alone
        for rank in self._ranks:
            rank.close()
        self._selector.close()
        self._listener.close()
        os.close(self._report)

    def follow(self) -> RankOutcome:
        """Follow the launcher and the ranks until all have ended."""
        is_over, node = False, self._node
        while not is_over:
            code = self._agent.poll()  # first, so that what comes before its end is read
            if code is not None and code < 0:
                self._kill_ranks()
            if code:
                node.end()
            elif node.has_failed:
                self._stop()
            if node.is_interrupted:
                self._interrupt()
            is_over = code is not None and all(rank.is_closed for rank in self._ranks)
            is_over = is_over and node.has_ended
            for key, _ in self._selector.select(0 if is_over else _TICK_S):
                key.data()
            for rank in self._ranks:
                rank.output.show_lines()
        for rank in self._ranks:
            rank.output.show_rest()
        ends_at = time.monotonic() + (_TAKEN_LIMIT_S if node.loss is not None else 0.0)
        while time.monotonic() < ends_at and not self._is_taken:
            time.sleep(_TICK_S)  # this machine is taken away, too, and the run goes on elsewhere
        return self._outcome()

    def on_interrupt(self) -> None:
        """Pass on an interrupt of this process."""
        self._is_taken = True
        self._interrupt()

    def _interrupt(self) -> None:
        """Interrupt all ranks, also those that have not connected yet; once, for they may save."""
        if self._is_interrupted:
            return
        self._is_interrupted = True
        self._node.interrupt()
        for rank in self._ranks:
            rank.signal(signal.SIGINT)

    def _stop(self) -> None:
        """End the ranks here, for those of another machine have failed."""
        now = time.monotonic()
        if self._stopped_at == math.inf:
            self._stopped_at = now
            self._agent.terminate()
        elif now > self._stopped_at + _STOP_LIMIT_S:  # it waits for launchers that don't come
            self._agent.kill()

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
                rank.output = RankOutput(
                    self._name_of(rank, "rank{1}", "node{0} rank{1}"), self._node.show
                )
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
            self._selector.unregister(rank.socket)
            rank.close()

    def _outcome(self) -> RankOutcome:
        """Return the outcome of rank 0, with the error of the rank that failed first, if any."""
        own = [rank.outcome for rank in self._ranks if rank.outcome is not None]
        usage = _use_of_all(outcome.usage for outcome in (*own, *self._node.outcomes))
        first = next((r.outcome for r in self._ranks if r.rank.is_first), None)
        outcome = dataclasses.replace(first or RankOutcome(time.monotonic()), usage=usage)
        if self._node.loss is not None:  # by which ranks of the others may have failed, too
            return dataclasses.replace(outcome, error=self._node.loss)
        failures = [each for each in (self._failure(), *self._node.outcomes) if each and each.error]
        if not failures:
            return outcome
        cause = min(failures, key=lambda failure: failure.ended_at)
        return dataclasses.replace(
            outcome, error=cause.error, ended_at=cause.ended_at, was_cut_short=cause.was_cut_short
        )

    def _failure(self) -> RankOutcome | None:
        """Return how the rank of this machine that failed first has ended; None if none has."""
        has_stopped, now = self._stopped_at < math.inf, time.monotonic()
        if self._agent.returncode < 0 and not has_stopped:
            code, what = self._agent.returncode, self._launcher
            error = describe_death_in_run(code, self._spec, self._log_tail(), self._hints)
            return RankOutcome(now, _of(what, error))
        failed = [
            (rank.failed_at, rank)
            for rank in self._ranks
            if rank.failed_at is not None
            if rank.outcome is not None or rank.failed_at < self._stopped_at
        ]
        if failed:
            at, rank = min(failed, key=lambda each: each[0])
            was_cut_short = rank.outcome is not None and rank.outcome.was_cut_short
            return RankOutcome(at, self._error_of(rank), was_cut_short)
        if len(self._ranks) == self._count or has_stopped:
            return None
        return RankOutcome(now, self._launch_error())

    def _launch_error(self) -> RunError:
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
        return _of(self._name_of(rank, "rank {1}", "node {0}, rank {1}"), error)

    def _name_of(self, rank: _RankProcess, alone: str, with_node: str) -> str:
        meeting = self._node.meeting
        form = alone if meeting.nodes == 1 else with_node
        return form.format(meeting.node, rank.rank.number)

    def _log_tail(self) -> str:
        return read_log_tail(Path(self._message.output), self._redactor)


class _RankProcess(Connection):
    """A rank as it is seen from the worker.

    Attributes:
        rank: Which it is; set with `pid` and `output` by its first message.
    """

    rank: Rank
    pid: int
    output: RankOutput

    @property
    def failed_at(self) -> float | None:
        """When it has failed; None if it hasn't."""
        if self.outcome is None:
            return self.closed_at
        return None if self.outcome.error is None else self.outcome.ended_at

    def signal(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if not self.is_closed and self.outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


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
