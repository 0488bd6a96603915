"""Temporary folders of a server; those of a killed server are deleted by the next one."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import tempfile
from pathlib import Path

from modal_emulator.storage.delete_tree import delete_tree

log = logging.getLogger(__name__)

STATE_PREFIX = "ml-experiments-emulator-"
# short, because the path of a unix socket in the folder has at most 107 characters
CONTAINERS_PREFIX = "mle-"
_OUR_NAMES = re.compile(f"({STATE_PREFIX}|{CONTAINERS_PREFIX})[a-z0-9_]{{8}}")
# A lock on this file marks a folder that is in use: the kernel releases it however the process
# ends. A process id in the file would not do, as it can belong to another process by now.
_OWNER = ".owner"


class TemporaryFolder:
    """A new folder, locked by this process until `delete`, or until the process ends."""

    def __init__(self, prefix: str) -> None:
        lock = None
        while lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=prefix))
            # None if another server found the file before it was locked, and deleted the folder
            lock = _lock(self.path / _OWNER, os.O_CREAT, fcntl.LOCK_EX)
        self._lock: int = lock

    def delete(self) -> None:
        """Delete the folder and what is in it."""
        _delete(self.path, self._lock)


def delete_abandoned_folders() -> None:
    """Delete the folders of this user's servers that were killed."""
    for folder in Path(tempfile.gettempdir()).iterdir():
        if _OUR_NAMES.fullmatch(folder.name):
            lock = _lock_abandoned(folder)
            if lock is not None:
                _delete(folder, lock)


def _lock_abandoned(folder: Path) -> int | None:
    try:
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            return _lock(folder / _OWNER, 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # it is being created or deleted, it is in use, or it is no folder of an emulator
        return None
    return None


def _lock(file: Path, flags: int, operation: int) -> int | None:
    """Return a descriptor that holds the lock of a file, or None if the file was just deleted.

    Raises:
        FileNotFoundError: If there is no such file.
        BlockingIOError: If another process has the lock and `operation` doesn't wait.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)
    locked = False
    try:
        fcntl.flock(descriptor, operation)
        locked = file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor))
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def _delete(folder: Path, lock: int) -> None:
    try:
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                delete_tree(entry)
            elif entry.name != _OWNER:
                entry.unlink()
        # last: without this file, the next server would not delete the rest
        (folder / _OWNER).unlink()
        folder.rmdir()
    except OSError as e:
        log.warning("%s could not be deleted; the next emulator tries again. %s", folder, e)
    finally:
        os.close(lock)
