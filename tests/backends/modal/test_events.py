"""Events between the lines of a container's output."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.backends.modal.container.log_forwarder import EVENT_MARK
from ml_experiments.backends.modal.events import EventReader


def event(**data: Any) -> bytes:
    return EVENT_MARK + json.dumps({"event": "progress", **data}).encode() + b"\n"


@given(
    pieces=st.lists(
        st.sampled_from([b"text\n", b"no end", event(done=1), b"ml-exp", b"\n", b"\xff"])
    ),
    cuts=st.lists(st.integers(1, 7)),
)
def test_output_and_events_are_told_apart_however_they_arrive(
    pieces: list[bytes], cuts: list[int]
) -> None:
    # an event is a line of its own
    data = b"".join(b"\n" + p if p.startswith(EVENT_MARK) else p for p in pieces)
    reader, heard, position = EventReader(), [], 0
    for cut in [*cuts, len(data) + 1]:
        heard += reader.feed(data[position : position + cut])
        position += cut
    heard.append(reader.flush())
    output = b"".join(item for item in heard if isinstance(item, bytes))
    assert output == data.replace(event(done=1), b"")
    assert sum(isinstance(item, dict) for item in heard) == data.count(EVENT_MARK)


def test_a_line_that_only_looks_like_an_event_is_output() -> None:
    for line in (EVENT_MARK + b"{not json\n", EVENT_MARK + b"[1]\n", EVENT_MARK + b'{"a": 1}\n'):
        assert list(EventReader().feed(line)) == [line]


def test_output_without_a_line_end_is_passed_on_at_once() -> None:
    assert list(EventReader().feed(b"loading ...")) == [b"loading ..."]
