"""How far a pull is, from the progress bars that huggingface_hub would show."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]


@dataclass(frozen=True)
class PullProgress:
    """How far a download is."""

    done_bytes: int
    total_bytes: int


class ProgressMeter:
    """Reports how far a pull is; the number of bytes that it reports only grows."""

    def __init__(self, total: int, on_progress: Callable[[PullProgress], None] | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()

    def reach(self, position: int) -> None:
        """Report that this many bytes are there, if that is more than before."""
        with self._lock:
            done = min(position, self._total)
            if self._on_progress is not None and done > self._done:
                self._done = done
                self._on_progress(PullProgress(done, self._total))

    def silent_bar(self) -> type[tqdm]:
        """Return a progress bar for huggingface_hub that shows nothing and reports to this."""
        reach = self.reach

        class Bar(tqdm):  # type: ignore[misc]
            monitor_interval = 0

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "file": io.StringIO()})

            def update(self, n: float | None = 1) -> bool | None:
                shown: bool | None = super().update(n)
                if self.unit == "B":  # another bar counts files
                    reach(int(self.n))
                return shown

        return Bar
