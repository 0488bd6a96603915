"""Locks: of a run folder, so that only one attempt at the run is active, and of any file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ml_experiments.errors import Error, RunFolderError
from ml_experiments.runs.folder import RunFolder

# an attempt releases the lock a moment after it has written its result
_WAIT_S = 1.0
_RETRY_S = 0.02


# filelock locks in the same way, but it writes to a folder in order to find out whether a lock is
# held, which a read-only one does not allow, and it leaves its file there after the release
class RunLock:
    """The lock of a run folder; the system releases it when the process dies."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    @classmethod
    def take(cls, folder: RunFolder) -> RunLock:
        """Lock a run folder.

        Raises:
            RunFolderError: If another attempt at the run holds the lock, or there can be none.
        """
        path = folder.path / ".lock"
        ends_at = time.monotonic() + _WAIT_S
        while True:
            try:
                file = path.open("ab")
            except OSError as e:
                raise RunFolderError(f"the run folder {folder.path} can't be locked: {e}") from e
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, path):
                    return cls(path, file)
            except BlockingIOError:
                pass
            except OSError as e:
                file.close()
                raise RunFolderError(f"the run folder {folder.path} can't be locked: {e}") from e
            file.close()
            if time.monotonic() > ends_at:
                raise RunFolderError(
                    f"run {folder.path.name} is being run by another process, or by another call "
                    "in this one; wait for its end, or cancel it there"
                )
            time.sleep(_RETRY_S)

    @staticmethod
    def is_held(folder: RunFolder) -> bool:
        """Return whether an attempt at a run, or a series of them, is active."""
        try:
            with (folder.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock, or a file system without any
            pass
        return False

    def release(self) -> None:
        """Release the lock and remove its file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether a file is still the one of this path, not one that a release has removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked_file(path: Path, message: str) -> Iterator[None]:
    """Hold a lock on a file for a block; the system releases it when the process dies.

    Args:
        path: The file; it is made if it isn't there.
        message: What is said where another process holds the lock.

    Raises:
        Error: If another process holds it.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Error(message) from e
        yield
