"""What the client of a run and others tell each other through the run folder.

A run folder may be on a file system that several machines or containers share. While a run goes on,
its client touches a file in the folder; when nothing in the folder has changed for a while, the run
is lost. A run that ends before the first beat never has the file: its other files are as young.

Whoever wants a run to end leaves a request there, which its client passes on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BEAT_EVERY_S = 15.0
LOST_AFTER_S = 120.0
_MAX_SKEW_S = 600.0
_TICK_S = 0.5
_FILE = ".heartbeat"
_CANCEL_FILE = ".cancel"
_AT_ONCE = "at once"
_SIGNS = (_FILE, "manifest.json", "log.txt", "metrics.jsonl")


@dataclass
class _Watched:
    cancel: Callable[[bool], object]
    passed_on: str | None = None


class Heartbeat:
    """Watches some run folders from one thread until they are removed.

    It touches a file in each, and passes on requests to cancel the run.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, _Watched] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, folder: Path, cancel: Callable[[bool], object]) -> None:
        """Start with a folder.

        Args:
            folder: The run folder.
            cancel: Cancels the run; it is called with whether to end it at once.
        """
        with self._lock:
            self._folders[folder] = _Watched(cancel)
            if self._thread is None:
                thread = threading.Thread(target=self._watch, daemon=True, name="heartbeat")
                with contextlib.suppress(RuntimeError):  # too many threads; the run does without
                    thread.start()
                    self._thread = thread

    def remove(self, folder: Path) -> None:
        """Stop with a folder."""
        with self._lock, contextlib.suppress(OSError):
            self._folders.pop(folder, None)
            for name in (_FILE, _CANCEL_FILE):
                (folder / name).unlink(missing_ok=True)

    def _watch(self) -> None:
        beaten_at = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            is_time = time.monotonic() - beaten_at >= BEAT_EVERY_S
            if is_time:
                beaten_at = time.monotonic()
            asked = []
            with self._lock:
                for folder, watched in self._folders.items():
                    with contextlib.suppress(OSError):  # a full disk, or a folder that was deleted
                        if is_time:
                            (folder / _FILE).touch()
                        request = (folder / _CANCEL_FILE).read_text("ascii", "replace")
                        if request != watched.passed_on:
                            watched.passed_on = request
                            asked.append((watched.cancel, request == _AT_ONCE))
            for cancel, at_once in asked:
                # the run may have ended meanwhile, or Modal may not be reached: asked for again
                with contextlib.suppress(Exception):
                    cancel(at_once)


def request_cancel(folder: Path, *, at_once: bool) -> None:
    """Ask the client of a run to cancel it.

    Raises:
        OSError: If the folder can't be written.
    """
    (folder / _CANCEL_FILE).write_text(_AT_ONCE if at_once else "", "ascii")


def forget_cancel(folder: Path) -> None:
    """Remove a request that was meant for an earlier attempt."""
    with contextlib.suppress(OSError):
        (folder / _CANCEL_FILE).unlink(missing_ok=True)


def silent_s(folder: Path, *, only_beats: bool = False) -> float:
    """Return for how many seconds a run folder has shown no sign of life.

    What is dated further in the future than clocks differ is none: it would be one for ever.

    Args:
        folder: The run folder.
        only_beats: Whether only what `Heartbeat` touches is a sign.
    """
    times, now = [], _now_of(folder)
    for name in (_FILE,) if only_beats else _SIGNS:
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return now - max((time for time in times if time < now + _MAX_SKEW_S), default=0.0)


def _now_of(folder: Path) -> float:
    """Return the time by the clock that dates the files of a folder, which may be a server's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it is read-only, or full
        return time.time()
