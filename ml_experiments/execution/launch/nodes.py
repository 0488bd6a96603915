"""How the machines of one run, its nodes, meet and end together.

Node 0 executes the run, and listens at its address among them. Each other node connects twice: to
what lasts as long as the run, whatever becomes of it, and to its launcher, if it comes to one. Each
message to or from that is a JSON object on a line of its own:

    from a node   {"node": its number, "run": its id}; the first one
                  {"log": ...}: lines that its ranks have printed
                  {"taken": true}: the platform takes it away, so that all save what they have
                  {"outcome": ..., "results": ...}: see `RankOutcome`; the last one
    to a node     {"start": ...}: see `Start`
                  {"interrupt": true}

A node whose connection ends before its outcome has come is lost, and the run with it. A node that
loses node 0, or that node 0 needs no more, ends its ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import select
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ml_experiments.execution.launch.output import show_here
from ml_experiments.execution.launch.ranks import Connection, RankOutcome, outcome_of
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import ErrorKind, RunError

_RUN_PORT, _LAUNCHER_PORT = 29471, 29472
_TRY_EVERY_S = 0.05
# after it, the run has ended before this node looked for it
_MEET_LIMIT_S = 60.0


@dataclass(frozen=True)
class Meeting:
    """Where the launchers of all machines meet, by torch's own means.

    Attributes:
        nodes: How many machines there are.
        node: Which of them this one is.
        address: The address of node 0.
        port: The port there.
    """

    nodes: int = 1
    node: int = 0
    address: str = ""
    port: int = 0


@dataclass(frozen=True)
class Start:
    """What node 0 tells another node to start with.

    Attributes:
        port: See `Meeting`.
        elapsed_s: How much of the run's timeout has passed.
        timeout_s: The timeout, which a cap may have made shorter.
    """

    port: int
    elapsed_s: float
    timeout_s: float | None


@contextmanager
def shown_to_nodes(addresses: Sequence[str]) -> Iterator[None]:
    """Let the other nodes see, in the block, that the run goes on."""
    with _listen(addresses, _RUN_PORT) if addresses else contextlib.nullcontext():
        yield


class FirstNode:
    """Node 0 as its launcher sees the others; or the only machine of a run.

    Attributes:
        meeting: Where it meets them.
        is_interrupted: Whether the ranks here have to be, because one of them is taken away.
    """

    def __init__(self, message: RunMessage) -> None:
        self._message = message
        self._nodes: list[_Node] = []
        self._was_interrupted = self._is_over = False
        self._listener: socket.socket | None = None
        self.is_interrupted = False
        self.meeting = Meeting()
        if addresses := message.addresses:
            self.meeting = Meeting(len(addresses), 0, addresses[0], _free_port())
            self._listener = _listen(addresses, _LAUNCHER_PORT)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have their connections and messages looked at, when they come."""
        self._selector = selector
        if self._listener is not None:
            selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def show(self, lines: bytes) -> None:
        """Show lines that a rank has printed."""
        show_here(lines)

    def interrupt(self) -> None:
        """Interrupt the ranks of the others, too."""
        self._was_interrupted = True
        for node in self._nodes:
            node.send({"interrupt": True})

    def end(self) -> None:
        """Have the others end their ranks; their outcomes still come."""
        if not self._is_over:
            self._is_over = True
            for node in self._nodes:
                node.dismiss()

    def close(self) -> None:
        """Close the connections."""
        for node in self._nodes:
            node.close()
        if self._listener is not None:
            self._listener.close()

    @property
    def has_failed(self) -> bool:
        """Whether one of the others has, so that the ranks here have to end."""
        return any(node.has_failed for node in self._nodes)

    @property
    def has_ended(self) -> bool:
        """Whether all others have."""
        expected = len(self._nodes) if self._is_over else self.meeting.nodes - 1
        return sum(node.is_closed for node in self._nodes) >= expected

    @property
    def loss(self) -> RunError | None:
        """The error of a run that has lost a node; None if it has all."""
        lost = [node.number for node in self._nodes if node.is_lost]
        if not lost:
            return None
        return RunError(
            ErrorKind.INFRASTRUCTURE,
            "NodeLostError",
            f"node {lost[0]} of {self.meeting.nodes} was lost while the run went on",
            hint="--retries 1 goes on from the last checkpoint by itself",
        )

    @property
    def outcomes(self) -> list[RankOutcome]:
        """How the others have ended, as far as they have said so."""
        return [node.outcome for node in self._nodes if node.outcome is not None]

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        node = _Node(connection)
        self._nodes.append(node)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(node))
        began_at = self._message.began_at or node.connected_at
        elapsed_s = node.connected_at - began_at
        start = Start(self.meeting.port, elapsed_s, self._message.spec.timeout_s)
        node.send({"start": dataclasses.asdict(start)})
        if self._was_interrupted:
            node.send({"interrupt": True})
        if self._is_over:
            node.dismiss()

    def _read(self, node: _Node) -> None:
        for message in node.read():
            if "node" in message:
                node.number = message["node"]
                if message["run"] != self._message.spec.run_id:  # it is late for an earlier run
                    self._nodes.remove(node)
                    node.is_closed = True
            elif "log" in message:
                show_here(message["log"].encode("utf-8", "surrogateescape"))
            elif "taken" in message:
                node.is_lost = self.is_interrupted = True
            else:
                node.take_outcome(outcome_of(message))
        if node.is_closed:
            self._selector.unregister(node.socket)
            node.close()
            is_expected = self._is_over or self._was_interrupted
            node.is_lost |= node.outcome is None and not is_expected


class OtherNode(Connection):
    """Another node as its launcher sees it: what node 0 says is done here.

    Attributes:
        start: What node 0 has told it.
        meeting: Where it meets node 0's launcher.
        is_interrupted: Whether node 0 has interrupted its ranks.
        has_ended: Whether there is nobody else to wait for.
        loss: None: only node 0 tells of one.
        outcomes: None of others.
    """

    has_ended = True
    loss: RunError | None = None
    outcomes: Sequence[RankOutcome] = ()

    def __init__(self, connection: socket.socket, meeting: Meeting, run_id: str) -> None:
        super().__init__(connection)
        self.is_interrupted = False
        self.start: Start | None = None
        self.send({"node": meeting.node, "run": run_id})
        while self.start is None and not self.is_closed:
            self._take_messages()
        self.meeting = dataclasses.replace(meeting, port=self.start.port if self.start else 0)
        self._started_at = time.monotonic()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have what node 0 says looked at, when it comes."""
        self._selector = selector
        selector.register(self.socket, selectors.EVENT_READ, self._read)

    def show(self, lines: bytes) -> None:
        """Let node 0 show lines that a rank has printed."""
        self.send({"log": lines.decode("utf-8", "surrogateescape")})

    def interrupt(self) -> None:
        """Do nothing: node 0 interrupts all nodes."""

    def end(self) -> None:
        """Do nothing: node 0 ends the others when it has this one's outcome."""

    def report_taken(self) -> None:
        """Tell node 0 that the platform takes this machine away."""
        self.send({"taken": True})

    def report(self, outcome: RankOutcome) -> None:
        """Tell node 0 how the ranks here have ended."""
        at = outcome.ended_at - self._started_at  # clocks of machines have nothing in common
        self.send(dataclasses.replace(outcome, ended_at=at).to_dict())

    @property
    def has_failed(self) -> bool:
        """Whether node 0 has, or needs this one no more."""
        return self.is_closed

    def _read(self) -> None:
        self._take_messages()
        if self.is_closed:
            self._selector.unregister(self.socket)

    def _take_messages(self) -> None:
        for message in self.read():
            if "start" in message:
                self.start = parse_record(Start, message["start"])
            self.is_interrupted |= "interrupt" in message


@contextmanager
def joined(addresses: Sequence[str], node: int, run_id: str) -> Iterator[OtherNode | None]:
    """Join a run as one of its other nodes; None if it has ended without its launcher.

    Args:
        addresses: The addresses of all nodes.
        node: Which of them this one is.
        run_id: The run.
    """
    with contextlib.ExitStack() as stack:
        run = _connect(addresses[0], _RUN_PORT)
        launcher = run and _connect(addresses[0], _LAUNCHER_PORT, stack.enter_context(run))
        if launcher is None:
            yield None
            return
        stack.enter_context(launcher)
        joins = OtherNode(launcher, Meeting(len(addresses), node, addresses[0]), run_id)
        yield None if joins.start is None else joins


class _Node(Connection):
    """Another node as node 0 sees it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(_kept_alive(connection))
        self.number, self.is_lost, self.connected_at = 0, False, time.monotonic()

    @property
    def has_failed(self) -> bool:
        """Whether it is gone, or its ranks have failed by themselves."""
        if self.outcome is not None:
            return self.outcome.has_failed
        return self.is_lost and self.is_closed

    def take_outcome(self, outcome: RankOutcome) -> None:
        """Note how its ranks have ended, by the clock of this machine."""
        # what a node causes elsewhere comes after it by this clock, too: both take a message's time
        self.outcome = dataclasses.replace(outcome, ended_at=outcome.ended_at + self.connected_at)

    def dismiss(self) -> None:
        """Have it end its ranks."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)


def _listen(addresses: Sequence[str], port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    return socket.create_server((addresses[0], port), family=family, backlog=len(addresses))


def _connect(address: str, port: int, run: socket.socket | None = None) -> socket.socket | None:
    """Connect to node 0 when it listens there; None if the run has ended before.

    Args:
        address: The address of node 0.
        port: The port there.
        run: What is readable when the run has ended; without it, there is a time limit.
    """
    ends_at = time.monotonic() + _MEET_LIMIT_S
    while not select.select([run], [], [], 0)[0] if run else time.monotonic() < ends_at:
        try:
            return _kept_alive(socket.create_connection((address, port)))
        except OSError:  # it does not listen yet
            time.sleep(_TRY_EVERY_S)
    return None


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Let a connection to a machine that has vanished be closed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
