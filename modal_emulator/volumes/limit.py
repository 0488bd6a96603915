"""Limits of the size of a volume, and its current size."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modal_emulator.volumes.changes import walk


class VolumeFullError(OSError):
    """Raised when a volume has no room for a file."""


@dataclass(frozen=True)
class Usage:
    """The size of a volume or of a part of it."""

    size_bytes: int
    files: int


@dataclass(frozen=True)
class VolumeLimit:
    """The limits of a volume; None is without limit."""

    max_bytes: int | None = None
    max_files: int | None = None

    def check(self, content: Path, added_bytes: Iterable[int], gone: Iterable[Path]) -> None:
        """Check that there is room for new files once others are deleted or replaced.

        Args:
            content: The folder with the content of the volume.
            added_bytes: The sizes of the new files.
            gone: The files that are deleted or replaced.

        Raises:
            VolumeFullError: If there is no room.
        """
        if self == VolumeLimit():
            return
        used, added, freed = usage_of(content), list(added_bytes), _usage(gone)
        size = used.size_bytes + sum(added) - freed.size_bytes
        files = used.files + len(added) - freed.files
        if self.max_bytes is not None and size > self.max_bytes:
            message = f"No space left on the volume: {size} of {self.max_bytes} bytes"
            raise VolumeFullError(errno.ENOSPC, message)
        if self.max_files is not None and files > self.max_files:
            message = f"No inodes left on the volume: {files} of {self.max_files} files"
            raise VolumeFullError(errno.ENOSPC, message)


def usage_of(folder: Path) -> Usage:
    """Return the size of a folder; links and the like count as files."""
    return _usage(Path(entry.path) for _, entry in walk(folder))


def _usage(paths: Iterable[Path]) -> Usage:
    files = {path for path in paths if os.path.lexists(path) and not _is_real_folder(path)}
    return Usage(sum(path.lstat().st_size for path in files), len(files))


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
