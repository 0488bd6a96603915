"""The container pools of a sweep: points with the same set-up share one container at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """Where a point of a sweep runs.

    Attributes:
        number: The number of the one container that the point shares with others of its set-up
            key; None for a pool that all points without a set-up key share.
        max_containers: How many containers the pool may have.
    """

    number: int | None
    max_containers: int


class Pools:
    """Assigns points to pools, such that there are never more containers than workers.

    A point gets an idle container that is set up for it, else one that has not been started, else
    one that is set up for something else, and so has to end first.

    Args:
        workers: How many points run at a time.
        one_each: Whether points without a set-up key get a container of a number, too: where
            their containers differ, such as in their timeouts, the old one has to end.
    """

    def __init__(self, workers: int, *, one_each: bool = False) -> None:
        self._workers, self._one_each = workers, one_each
        self._unused = list(range(workers))
        self._idle: dict[int, str | None] = {}  # the set-up key of each container without a point
        self._keys: dict[int, str | None] = {}

    def take(self, setup_key: str | None) -> Pool:
        """Return the pool for a point."""
        if setup_key is None and not self._one_each:
            return Pool(None, self._workers)
        number = next((n for n, key in self._idle.items() if key == setup_key), None)
        if number is None:
            number = self._unused.pop(0) if self._unused else next(iter(self._idle))
        self._idle.pop(number, None)
        self._keys[number] = setup_key
        return Pool(number, 1)

    def free(self, pool: Pool | None) -> None:
        """Take note that the point of a pool has ended."""
        if pool is not None and pool.number is not None:
            self._idle[pool.number] = self._keys[pool.number]

    def end_idle(self) -> list[Pool]:
        """Return the pools without a point, which are to end; later points start them anew."""
        ended = sorted(self._idle)
        self._idle.clear()
        self._unused += ended
        return [Pool(number, 1) for number in ended]
