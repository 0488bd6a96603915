"""Copies files, without copying their blocks where the file system allows that."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

# ioctl of Linux that makes two files share their blocks until one of them is written to
_FICLONE = 0x40049409


def copy_file(source: str | Path, destination: str | Path) -> None:
    """Copy a file, a link, a pipe or a socket, with mode and times, without following links."""
    mode = os.lstat(source).st_mode
    if stat.S_ISREG(mode):
        if _share_blocks(source, destination):
            shutil.copystat(source, destination)
        else:
            shutil.copy2(source, destination)
    elif stat.S_ISLNK(mode):
        shutil.copy2(source, destination, follow_symlinks=False)
    else:
        os.mknod(destination, mode)


def _share_blocks(source: str | Path, destination: str | Path) -> bool:
    with Path(source).open("rb") as original, Path(destination).open("wb") as copy:
        try:
            fcntl.ioctl(copy, _FICLONE, original.fileno())
        except OSError:
            # most file systems don't support it
            return False
    return True
