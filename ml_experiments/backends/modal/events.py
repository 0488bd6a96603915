"""Both ends of a run's output on Modal: the container's, and the client's that reads its logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ml_experiments.backends.modal.container.log_forwarder import EVENT_MARK


class EventReader:
    """Takes apart what a container printed: events, and the experiment's own output."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any] | bytes]:
        """Yield events and pieces of output, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = _parse(line)
            yield line + b"\n" if event is None else event
        if self._rest and not EVENT_MARK.startswith(self._rest[: len(EVENT_MARK)]):
            rest, self._rest = self._rest, b""
            yield rest

    def flush(self) -> bytes:
        """Return what was held back because it could have become an event."""
        rest, self._rest = self._rest, b""
        return rest


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(EVENT_MARK):
        return None
    try:
        event = json.loads(line.removeprefix(EVENT_MARK))
    except ValueError:
        return None  # the experiment printed a line that only looks like an event
    return event if isinstance(event, dict) and "event" in event else None
