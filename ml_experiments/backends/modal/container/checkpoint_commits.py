"""Stores a run's checkpoints on the volume while it goes on, at most every so often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

MIN_INTERVAL_S = 60.0


class CheckpointCommits:
    """Commits after checkpoints, in a thread of its own: a commit may take longer than a step.

    Args:
        commit: Stores what is on the volume.
        interval_s: The least time between the beginnings of two commits.
    """

    def __init__(self, commit: Callable[[], object], interval_s: float = MIN_INTERVAL_S) -> None:
        self._commit, self._interval_s = commit, interval_s
        self._saved, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def checkpoint_saved(self) -> None:
        """Store what is there now, or as soon as the interval has passed."""
        self._saved.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # what is still due is stored by the commit at the end of the run
        self._ended.set()
        self._saved.set()
        self._thread.join()

    def _follow(self) -> None:
        while self._saved.wait() and not self._ended.is_set():
            self._saved.clear()
            began_at = time.monotonic()
            self._commit()
            self._ended.wait(max(0.0, began_at + self._interval_s - time.monotonic()))
