"""How far a pull is, added up from files that are downloaded at the same time."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]


@dataclass(frozen=True)
class PullProgress:
    """How far a download is; bytes that an interrupted one had left count as done."""

    done_bytes: int
    total_bytes: int


class ProgressMeter:
    """Adds up how far each part of a pull is; what it tells only grows."""

    def __init__(self, total: int, on_progress: Callable[[PullProgress], None] | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._positions: dict[str, int] = {}
        self._told = 0
        self._lock = threading.Lock()

    def reach(self, part: str, position: int) -> None:
        """Take note that so many bytes of a part are there."""
        with self._lock:
            self._positions[part] = position
            done = min(sum(self._positions.values()), self._total)
            if self._on_progress is not None and done > self._told:
                self._told = done
                self._on_progress(PullProgress(done, self._total))


def silent_bar(on_bytes: Callable[[int, int], None]) -> type[tqdm]:
    """Return a progress bar for huggingface_hub that shows nothing.

    Args:
        on_bytes: Called as bytes arrive, with how many there are by now and how many are new.
    """

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.unit == "B":  # another bar counts files
                on_bytes(int(self.n), int(n or 0))
            return shown

    return Bar
