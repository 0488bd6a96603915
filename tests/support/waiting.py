"""Waits for conditions, with deadlines that suit a loaded machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Return when the condition holds; fail when it does not within the time."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_at:
            raise AssertionError(f"{what} did not happen within {timeout_s} s")
        time.sleep(0.05)
