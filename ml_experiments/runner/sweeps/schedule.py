"""In which order the points of a grid start, so that few set-ups serve many points."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable


class Schedule:
    """Gives out points; those with the same set-up key go to as few workers as possible.

    There are at most as many set-ups as keys, or as workers where those are more: a worker whose
    key has no points left takes a key that no worker has, and helps with another only while the
    set-ups stay within that number.

    Attributes:
        setups: How many set-ups there were so far; None where none is shared.

    Args:
        points: Each with its set-up key; None for one that shares its set-up with no other.
        workers: How many points run at a time.
    """

    def __init__(self, points: Iterable[tuple[int, Hashable | None]], workers: int) -> None:
        self._waiting: dict[Hashable | None, deque[int]] = defaultdict(deque)
        for point, key in points:
            self._waiting[key].append(point)
        self._alone = self._waiting.pop(None, deque())
        self._unstarted = deque(self._waiting)
        self._left = max(len(self._unstarted), workers)  # set-ups
        self._new = workers  # workers without a set-up
        self._idle: Counter[Hashable] = Counter()  # those with one, by its key
        self._active: dict[int, Hashable | None] = {}
        self._helpers: Counter[Hashable] = Counter()
        self.setups: int | None = 0 if self._unstarted else None

    def take(self) -> int | None:
        """Return the next point to start; None if none can start until one ends."""
        key = next((k for k, count in self._idle.items() if count and self._waiting[k]), None)
        if key is not None:
            self._idle[key] -= 1
            return self._start(key)
        if not self._new and not self._idle.total():
            return None
        if self._alone:
            self._use_any_worker()
            point = self._alone.popleft()
            self._active[point] = None
            return point
        if self._unstarted:
            key = self._unstarted.popleft()
        else:
            # the key with the most points for each of its workers
            rest = [k for k, points in self._waiting.items() if points]
            if not rest or not self._left:
                return None
            key = max(rest, key=lambda k: len(self._waiting[k]) / self._helpers[k])
        self._left -= 1
        self.setups = (self.setups or 0) + 1
        self._helpers[key] += 1
        self._use_any_worker()
        return self._start(key)

    def upcoming(self) -> int | None:
        """Return a point that is likely to start when one of the running points has ended."""
        waiting = (self._waiting[key] for key in self._active.values() if key is not None)
        return next((points[0] for points in (*waiting, self._alone) if points), None)

    def ended(self, point: int) -> None:
        """Make the worker of a point free again."""
        key = self._active.pop(point)
        if key is None:
            self._new += 1
        else:
            self._idle[key] += 1

    def _start(self, key: Hashable) -> int:
        point = self._waiting[key].popleft()
        self._active[point] = key
        return point

    def _use_any_worker(self) -> None:
        if self._new:
            self._new -= 1
            return
        key = next(key for key, count in self._idle.items() if count)
        self._idle[key] -= 1
        self._helpers[key] -= 1
