"""How the machines of a run meet and end together, without launchers."""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments.execution.hints import Hints
from ml_experiments.execution.launch import launcher, nodes
from ml_experiments.execution.launch.nodes import FirstNode, OtherNode, joined, shown_to_nodes
from ml_experiments.execution.launch.ranks import RankOutcome
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.runner.retry import can_pass
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec
from tests.support.waiting import wait_until

ADDRESSES = ("127.0.0.1", "127.0.0.1")
FAILURE = RunError(ErrorKind.EXPERIMENT, "ValueError", "no")


def message_of(run_id: str = "run-1", began_at: float | None = None) -> RunMessage:
    spec = RunSpec(run_id, "a:b", {}, 1, "", timeout_s=9.0)
    return RunMessage(spec, "", 1, "", began_at, (), None, "", False, ADDRESSES)


class Loop:
    """The loop of a launcher: looks at what comes until a condition holds."""

    def __init__(self, node: FirstNode | OtherNode) -> None:
        self._selector = selectors.DefaultSelector()
        node.register(self._selector)

    def until(self, condition: Callable[[], object]) -> None:
        def holds() -> object:
            for key, _ in self._selector.select(0.01):
                key.data()
            return condition()

        wait_until(holds, "what the test waits for", 20)


@contextmanager
def two_nodes(message: RunMessage | None = None) -> Iterator[tuple[FirstNode, OtherNode, Loop]]:
    """Node 0 and node 1 of a run that have met, and the loop of node 0."""
    message = message or message_of()
    met, over = threading.Event(), threading.Event()
    found: list[OtherNode | None] = []

    def join() -> None:
        with joined(ADDRESSES, 1, "run-1") as node:
            found.append(node)
            met.set()
            over.wait(30)

    with (
        shown_to_nodes(ADDRESSES),
        contextlib.closing(FirstNode(message)) as first,
        ThreadPoolExecutor(1) as thread,
    ):
        joining = thread.submit(join)
        loop = Loop(first)
        loop.until(met.is_set)
        try:
            assert found[0] is not None
            yield first, found[0], loop
        finally:
            over.set()
            joining.result(30)


def test_a_run_of_one_machine_waits_for_nobody() -> None:
    first = FirstNode(RunMessage(message_of().spec, "", 1, "", None, (), None, "", False))
    assert (first.has_ended, first.has_failed, first.loss) == (True, False, None)
    assert first.meeting.nodes == 1


def test_a_node_learns_where_to_meet_and_how_much_time_has_passed() -> None:
    with two_nodes(message_of(began_at=time.monotonic() - 3)) as (first, other, _):
        assert other.start is not None
        assert (other.start.timeout_s, 3 <= other.start.elapsed_s < 8) == (9.0, True)
        meetings = first.meeting, other.meeting
        assert [each.node for each in meetings] == [0, 1]
        assert len({(each.nodes, each.address, each.port) for each in meetings}) == 1
        assert not first.has_ended


def test_lines_and_the_outcome_of_a_node_come_to_node_0(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with two_nodes() as (first, other, loop):
        other.show(b"[node1 rank1] \xff\xc3\xa9\n")
        before = time.monotonic()
        other.report(RankOutcome(time.monotonic(), FAILURE))
        loop.until(lambda: first.outcomes)
        [outcome] = first.outcomes
        assert capfdbinary.readouterr().out == b"[node1 rank1] \xff\xc3\xa9\n"
        assert outcome.error == FAILURE
        assert outcome.ended_at == pytest.approx(before, abs=1)  # by the clock of node 0
        assert (first.has_failed, first.loss) == (True, None)


def test_a_node_whose_ranks_were_cut_short_has_not_failed() -> None:
    with two_nodes() as (first, other, loop):
        other.report(RankOutcome(time.monotonic(), FAILURE, was_cut_short=True))
        loop.until(lambda: first.outcomes)
        assert not first.has_failed


def test_an_interrupt_and_the_end_come_to_the_other_node() -> None:
    with two_nodes() as (first, other, loop):
        loop_of_other = Loop(other)
        first.interrupt()
        loop_of_other.until(lambda: other.is_interrupted)
        assert not other.has_failed
        first.end()
        loop_of_other.until(lambda: other.has_failed)
        other.report(RankOutcome(time.monotonic(), FAILURE))  # still heard
        loop.until(lambda: first.outcomes)
    assert first.loss is None


def test_a_node_that_joins_late_is_interrupted_too() -> None:
    found: list[Any] = []

    def join() -> None:
        with joined(ADDRESSES, 1, "run-1") as node:
            assert node is not None
            Loop(node).until(lambda: node.is_interrupted)
            found.append(node.is_interrupted)

    with (
        shown_to_nodes(ADDRESSES),
        contextlib.closing(FirstNode(message_of())) as first,
        ThreadPoolExecutor(1) as thread,
    ):
        first.interrupt()
        joining = thread.submit(join)
        Loop(first).until(joining.done)
    assert found == [True]


def test_a_node_whose_connection_breaks_is_lost() -> None:
    with two_nodes() as (first, other, loop):
        other.close()
        loop.until(lambda: first.has_ended)
        assert first.has_failed
        assert first.loss is not None
        assert first.loss.kind is ErrorKind.INFRASTRUCTURE
        assert first.loss.message == "node 1 of 2 was lost while the run went on"


def test_a_node_that_is_taken_away_lets_all_ranks_save() -> None:
    with two_nodes() as (first, other, loop):
        other.report_taken()
        loop.until(lambda: first.is_interrupted)
        assert first.loss is not None
        assert not first.has_failed  # yet
        other.close()
        loop.until(lambda: first.has_failed)


def test_a_launcher_that_loses_a_node_ends_and_so_does_the_run_if_it_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(launcher, "_TAKEN_LIMIT_S", 0.1)
    message = message_of()
    spec = dataclasses.replace(message.spec, launch="torchrun", nproc_per_node=1, nodes=2)
    (tmp_path / "log.txt").touch()
    message = dataclasses.replace(
        message, spec=spec, folder=str(tmp_path), output=str(tmp_path / "log.txt")
    )

    def join_and_break() -> None:
        with joined(ADDRESSES, 1, "run-1") as node:
            assert node is not None

    with shown_to_nodes(ADDRESSES), ThreadPoolExecutor(1) as thread:
        joining = thread.submit(join_and_break)
        outcome = launcher.run_in_ranks(message, lambda _event: None, Hints())
        joining.result(30)
    assert outcome.error is not None
    assert outcome.error.type == "NodeLostError"
    assert can_pass(outcome.error, has_progressed=lambda: False)  # by --retries


def test_a_node_that_node_0_has_sent_away_is_not_lost() -> None:
    with two_nodes() as (first, other, loop):
        first.end()
        other.close()
        loop.until(lambda: first.has_ended)
        assert (first.has_failed, first.loss) == (False, None)


def test_a_node_that_is_late_for_an_earlier_run_does_not_count() -> None:
    found: list[Any] = []

    def join(run_id: str) -> None:
        with joined(ADDRESSES, 1, run_id) as node:
            assert node is not None
            Loop(node).until(lambda: node.has_failed)
            found.append(run_id)

    with (
        shown_to_nodes(ADDRESSES),
        contextlib.closing(FirstNode(message_of("run-2"))) as first,
        ThreadPoolExecutor(1) as thread,
    ):
        joining = thread.submit(join, "run-1")
        Loop(first).until(joining.done)
        assert (first.has_ended, first.has_failed, first.loss) == (False, False, None)
    assert found == ["run-1"]


def test_a_run_that_ends_without_a_launcher_lets_its_nodes_go() -> None:
    def join() -> bool:
        with joined(ADDRESSES, 1, "run-1") as node:
            return node is None

    def has_come() -> bool:
        to = [c.raddr.port for c in psutil.Process().net_connections() if c.raddr]
        return nodes._RUN_PORT in to

    with ThreadPoolExecutor(1) as thread:
        with shown_to_nodes(ADDRESSES):
            joining = thread.submit(join)
            wait_until(has_come, "the connection to the run")
            assert not joining.done()
        assert joining.result(30)


def test_a_node_that_finds_no_run_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_MEET_LIMIT_S", 0.1)
    with joined(ADDRESSES, 1, "run-1") as node:
        assert node is None
