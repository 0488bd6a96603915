"""Temporary folders: what a process that was killed has left there, the next one removes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "ml-experiments-scratch-"
# one that was made just now may not be locked yet
_MIN_AGE_S = 60.0


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, locked while it is used.

    The system lets go of a lock when its process dies, however that happens.
    """

    def __init__(self) -> None:
        super().__init__(prefix=_PREFIX)
        self._lock = os.open(self.name, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        _remove_abandoned(Path(self.name).parent)

    def cleanup(self) -> None:
        super().cleanup()
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _remove_abandoned(folder: Path) -> None:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            is_old = time.time() - status.st_mtime > _MIN_AGE_S
            is_own = entry.name.startswith(_PREFIX) and status.st_uid == os.getuid()
            if is_own and is_old and entry.is_dir(follow_symlinks=False):
                _remove_if_unlocked(entry.path)


def _remove_if_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
