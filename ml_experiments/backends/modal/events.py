"""Both ends of a run's output on Modal: the container's, and the client's that reads its logs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from ml_experiments.execution.events import (
    Event,
    Finished,
    Metrics,
    Notice,
    Progress,
    Started,
    event_from_json,
    event_to_json,
)
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

EVENT_MARK = b"ml-experiments: "
# ends a line that goes on after the event; other viewers of the logs show nothing for it
_UNFINISHED = b"\x1b[0;0m"


class EventPrinter(Observer):
    """Prints what a run prints, and its events as lines between, for Modal's live logs."""

    def __init__(self) -> None:
        self._is_at_line_start = True

    @override
    def started(self, spec: RunSpec) -> None:
        self._print(Started())

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        self._print(Notice(text))

    @override
    def log(self, spec: RunSpec, data: bytes) -> None:
        if data:
            self._write(data)

    @override
    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        self._print(Progress(done, total, text))

    @override
    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        self._print(Metrics(dict(metrics), step))

    @override
    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self._print(Finished())

    def _print(self, event: Event) -> None:
        line = EVENT_MARK + json.dumps(event_to_json(event)).encode() + b"\n"
        self._write(line if self._is_at_line_start else _UNFINISHED + b"\n" + line)

    def _write(self, data: bytes) -> None:
        self._is_at_line_start = data.endswith(b"\n")
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


class EventReader:
    """Takes apart what a container printed: events, and the experiment's own output."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Event | bytes]:
        """Yield events and pieces of output, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = _parse(line)
            if event is not None:
                yield event
            elif line.endswith(_UNFINISHED):
                yield line.removesuffix(_UNFINISHED)
            else:
                yield line + b"\n"
        if self._rest and not EVENT_MARK.startswith(self._rest[: len(EVENT_MARK)]):
            # the mark may be cut, like any other bytes
            cuts = range(len(_UNFINISHED), -1, -1)
            held = next(n for n in cuts if self._rest.endswith(_UNFINISHED[:n]))
            end = len(self._rest) - held
            rest, self._rest = self._rest[:end], self._rest[end:]
            if rest:
                yield rest

    def flush(self) -> bytes:
        """Return what was held back because it could have become an event."""
        rest, self._rest = self._rest, b""
        return rest


def _parse(line: bytes) -> Event | None:
    if not line.startswith(EVENT_MARK):
        return None
    try:
        return event_from_json(json.loads(line.removeprefix(EVENT_MARK)))
    except ValueError:
        return None  # the experiment printed a line that only looks like an event
