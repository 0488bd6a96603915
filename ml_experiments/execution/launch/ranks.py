"""What a worker and the ranks that its launcher has started send each other.

A rank connects to the worker's socket; for what machines send each other, see `nodes.py`. Each
message is a JSON object on a line of its own:

    from a rank   {"hello": ..., "pid": ...}: see `Rank`
                  {"event": ...}: see `events.py`
                  {"outcome": ..., "results": ...}: see `RankOutcome`; the last one
    to a rank     {"run": ..., "checkpoint": ...}: see `RunMessage`, and the newest checkpoint when
                  the run began; with the file for its output
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import RunError

_READ_SIZE = 1 << 16


@dataclass(frozen=True)
class Rank:
    """One of the processes of a run, as its launcher numbers them.

    Attributes:
        number: Its rank: 0 to `world_size - 1`.
        local: Its rank among those on its machine.
        world_size: How many processes there are.
    """

    number: int = 0
    local: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one whose results, metrics and checkpoints are the run's."""
        return self.number == 0


@dataclass(frozen=True)
class RankOutcome:
    """How the experiment has ended in one rank.

    Attributes:
        ended_at: When, as `time.monotonic()`.
        error: What it raised; None if it returned.
        was_cut_short: Whether a soft timeout or an interrupt ended it.
        results: What it returned, as JSON; of rank 0 only.
        timings: How long import, set-up and run took.
        usage: See `memory_and_gpu_use`.
    """

    ended_at: float
    error: RunError | None = None
    was_cut_short: bool = False
    results: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        """Whether it has an error that the others don't end with by themselves."""
        return self.error is not None and not self.was_cut_short

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a message."""
        record = dataclasses.asdict(dataclasses.replace(self, results=None))
        return {"outcome": record, "results": self.results}


class Connection:
    """One end of a connection over which messages go.

    Attributes:
        socket: Its socket.
        outcome: How the other side has ended.
        is_closed: Whether the process there has ended, or closed the connection.
        closed_at: When, as `time.monotonic()`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.outcome: RankOutcome | None = None
        self.is_closed = False
        self.closed_at = 0.0
        self._received = b""

    def read(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived."""
        try:
            data = self.socket.recv(_READ_SIZE)
        except OSError:  # reset
            data = b""
        if not data:
            self.is_closed, self.closed_at = True, time.monotonic()
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, message: dict[str, Any], *descriptors: int) -> None:
        """Send a message, with files."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # that it has ended is noticed when it is read
            sent = socket.send_fds(self.socket, [data], descriptors) if descriptors else 0
            self.socket.sendall(data[sent:])

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def outcome_of(message: dict[str, Any]) -> RankOutcome:
    """Return the outcome of `RankOutcome.to_dict`."""
    outcome = parse_record(RankOutcome, message["outcome"])
    return dataclasses.replace(outcome, results=message["results"])
