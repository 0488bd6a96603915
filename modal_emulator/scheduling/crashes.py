"""When a crashed container is started again, and when that is given up.

Modal runs the inputs of a container that crashed again, apart from `retries`: for an ephemeral app
until a failure rate is exceeded, for a deployed one for ever, with a growing delay
(https://modal.com/docs/guide/retries). It documents no numbers, so these are the emulator's own.
"""

from __future__ import annotations

import signal
import time
from collections import deque

from modal_emulator.containers.container import Container

MAX_CRASHES = 3
_LAST_OUTCOMES = 10
_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 60.0


class Crashes:
    """How the latest containers and inputs of one definition of a function ended."""

    def __init__(self) -> None:
        self._start_counting("")

    def _start_counting(self, definition_id: str) -> None:
        self._definition_id = definition_id
        self._crashed: deque[bool] = deque(maxlen=_LAST_OUTCOMES)
        self._in_a_row = 0
        self._next_start_at = 0.0

    def add_output(self) -> None:
        """Record that an input came to its end."""
        self._crashed.append(False)
        self._in_a_row = 0

    def add_crash(self, definition_id: str) -> None:
        """Record that a container crashed."""
        if definition_id != self._definition_id:
            self._start_counting(definition_id)
        self._crashed.append(True)
        self._in_a_row += 1
        self._next_start_at = time.monotonic() + self._delay_s()

    def are_too_many(self) -> bool:
        """Return whether an ephemeral app should start no more containers."""
        return sum(self._crashed) >= MAX_CRASHES

    def forget(self) -> None:
        """Begin to count again, for the next call."""
        self._crashed.clear()

    def wait_s(self, definition_id: str) -> float:
        """Return how long to wait before a deployed function gets its next container."""
        if definition_id != self._definition_id:
            return 0.0
        return max(0.0, self._next_start_at - time.monotonic())

    def _delay_s(self) -> float:
        if self._in_a_row < 2:
            return 0.0
        return min(_FIRST_DELAY_S * 2.0 ** min(self._in_a_row - 2, 16), _MAX_DELAY_S)


def describe_crash(container: Container, exit_code: int) -> str:
    """Return what happened to a container, without a full stop."""
    name = container.function.name
    limit_mib = container.definition.resources.memory_mb_max
    if container.end_reason == "out_of_memory":
        exit_ = f"was killed: it used more than its memory limit of {limit_mib} MiB"
    elif exit_code >= 0:
        exit_ = f"exited with code {exit_code}"
    else:
        names = {each.value: each.name for each in signal.Signals}
        exit_ = f"was killed by {names.get(-exit_code, f'signal {-exit_code}')}"
    if container.ready:
        return f"The container {container.task_id} of {name} {exit_} while it ran an input"
    return f"The container of {name} did not start: it {exit_}"
