"""How much of the life of this container, which Modal bills as a whole, each of its runs counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# from the last wait of a container to its end
_SHUTDOWN_S = 2.0


class PaidTime:
    """Divides the life of a container among its runs, so that their sum is no less than all of it.

    A run counts what has passed since the end of the run before. The first one counts the start of
    the container, and the last wait of it for another run, which no run would count otherwise.

    Args:
        clock: Returns the seconds since this process was started.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or seconds_since_start
        self._counted_s: float | None = None

    def take_s(self, idle_s: float) -> float:
        """Return the seconds that count from now on for the run that ends now.

        Args:
            idle_s: How long the container waits for another run in the end.
        """
        now_s = self._clock()
        is_first, before_s = self._counted_s is None, self._counted_s or 0.0
        self._counted_s = now_s
        return max(0.0, now_s - before_s) + (idle_s + _SHUTDOWN_S if is_first else 0.0)


def seconds_since_start() -> float:
    """Return how long this process has existed; Linux knows it, as all containers have it."""
    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    start_ticks = int(stat.rpartition(")")[2].split()[19])  # field 22 of proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
