"""Signs of life of runs, for those who can't see the process that sees a run through.

A run folder may be on a file system that several machines or containers share. While a run goes on,
its client touches a file in the folder; when nothing in the folder has changed for a while, the run
is lost. A run that ends before the first beat never has the file: its other files are as young.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

BEAT_EVERY_S = 15.0
LOST_AFTER_S = 120.0
_FILE = ".heartbeat"
_SIGNS = (_FILE, "manifest.json", "log.txt", "metrics.jsonl")


class Heartbeat:
    """Touches a file in each of some run folders, from one thread, until they are removed."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, folder: Path) -> None:
        """Start with a folder."""
        with self._lock:
            self._folders.add(folder)
            if self._thread is None:
                thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
                with contextlib.suppress(RuntimeError):  # too many threads; the run does without
                    thread.start()
                    self._thread = thread

    def remove(self, folder: Path) -> None:
        """Stop with a folder."""
        with self._lock, contextlib.suppress(OSError):
            self._folders.discard(folder)
            (folder / _FILE).unlink(missing_ok=True)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_EVERY_S)
            with self._lock:
                for folder in self._folders:
                    with contextlib.suppress(OSError):  # a full disk, or a folder that was deleted
                        (folder / _FILE).touch()


def silent_s(folder: Path) -> float:
    """Return for how many seconds a run folder has shown no sign of life."""
    times = []
    for name in _SIGNS:
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return time.time() - max(times, default=0.0)
