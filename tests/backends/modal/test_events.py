"""Both ends of a run's output on Modal: what a container prints, and what the client reads."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.backends.modal.events import EVENT_MARK, EventPrinter, EventReader
from ml_experiments.execution.events import Progress, event_to_json
from ml_experiments.runs.spec import RunSpec

SPEC = RunSpec("run-1", "m:C", {}, 0, "", backend="modal", gpu="a10g", timeout_s=100)
PROGRESS = EVENT_MARK + json.dumps(event_to_json(Progress(1.0, None, ""))).encode() + b"\n"


@given(
    pieces=st.lists(st.sampled_from([b"text\n", b"no end", PROGRESS, b"ml-exp", b"\n", b"\xff"])),
    cuts=st.lists(st.integers(1, 7)),
)
def test_output_and_events_are_told_apart_however_they_arrive(
    pieces: list[bytes], cuts: list[int]
) -> None:
    # an event is a line of its own
    data = b"".join(b"\n" + p if p.startswith(EVENT_MARK) else p for p in pieces)
    reader, position = EventReader(), 0
    heard: list[object] = []
    for cut in [*cuts, len(data) + 1]:
        heard += reader.feed(data[position : position + cut])
        position += cut
    heard.append(reader.flush())
    output = b"".join(item for item in heard if isinstance(item, bytes))
    assert output == data.replace(PROGRESS, b"")
    assert sum(isinstance(item, Progress) for item in heard) == data.count(EVENT_MARK)


def test_a_line_that_only_looks_like_an_event_is_output() -> None:
    for line in (EVENT_MARK + b"{not json\n", EVENT_MARK + b"[1]\n", EVENT_MARK + b'{"a": 1}\n'):
        assert list(EventReader().feed(line)) == [line]


def test_output_without_a_line_end_is_passed_on_at_once() -> None:
    assert list(EventReader().feed(b"loading ...")) == [b"loading ..."]


@given(cuts=st.lists(st.integers(1, 9)))
def test_an_event_amid_a_line_leaves_the_line_whole(cuts: list[int]) -> None:
    printed = bytearray()
    pieces = [b"a line\n", b"\r 10%", b"\r 90%", b"", b"\n", b"the end"]

    def write(_descriptor: int, data: bytes) -> int:
        printed.extend(data)
        return len(data)

    printer = EventPrinter()
    with mock.patch("os.write", write):
        for piece in pieces:
            printer.log(SPEC, piece)
            printer.progress(SPEC, 1.0, None, "")
    reader, position = EventReader(), 0
    received: list[object] = []
    for cut in [*cuts, len(printed)]:
        received += reader.feed(bytes(printed[position : position + cut]))
        position += cut
    received.append(reader.flush())
    output = b"".join(item for item in received if isinstance(item, bytes))
    assert output == b"".join(pieces)
    assert sum(isinstance(item, Progress) for item in received) == len(pieces)


def test_an_event_is_a_line_of_its_own_in_what_a_container_prints(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    printer = EventPrinter()
    for data in (b"a line\n", b"no end"):
        printer.progress(SPEC, 1.0, None, "")
        printer.log(SPEC, data)
    printer.progress(SPEC, 1.0, None, "")
    out, _ = capfdbinary.readouterr()
    assert out.split(b"\n").count(PROGRESS.rstrip(b"\n")) == 3
