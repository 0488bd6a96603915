"""Files as they are on disk: what is there, what it holds, and what removing it frees."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# None for whatever isn't a regular file: a symbolic link, a socket
Files = Mapping[str, os.stat_result | None]

_MAX_JSON_BYTES = 1_000_000


def list_files(folder: str) -> dict[str, os.stat_result | None]:
    """Return all that is below a folder, by path; symbolic links are listed, never followed.

    A folder that can't be read is listed like a file that isn't regular.
    """
    found: dict[str, os.stat_result | None] = {}
    folders = [folder]
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        found.update(stat_files([entry.path]))
                    else:
                        found[entry.path] = None
        except (FileNotFoundError, NotADirectoryError):
            continue  # it vanished since its parent was read
        except OSError:
            found[parent] = None
    return found


def list_folders(folder: str) -> list[str]:
    """Return a folder and all folders below it that can be read; none if it is no folder."""
    found = []
    folders = [folder] if os.path.isdir(folder) and not os.path.islink(folder) else []
    while folders:
        found.append(folders.pop())
        folders += [f"{found[-1]}{os.sep}{name}" for name in subfolders(found[-1])]
    return found


def subfolders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, sorted; none if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes | None:
    """Return what a regular file of at most this size holds; None for anything else.

    Nothing is waited for, as opening a FIFO would, and no symbolic link is followed.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError:
        return None
    return content if len(content) <= max_bytes else None


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the JSON object that a small file holds; None for anything else."""
    try:
        data = json.loads(read_file(path, _MAX_JSON_BYTES) or b"")
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def stat_files(paths: Iterable[str]) -> dict[str, os.stat_result | None]:
    """Return those of the paths that exist."""
    found: dict[str, os.stat_result | None] = {}
    for path in paths:
        try:
            status = os.lstat(path)
        except OSError:
            continue  # gone, or in a folder that can't be read
        found[path] = status if stat.S_ISREG(status.st_mode) else None
    return found


def bytes_held(files: Files) -> int:
    """Return what removing all of these files frees: their sizes, each inode once.

    A file that has a further hard link elsewhere frees nothing.
    """
    total = 0
    links: dict[tuple[int, int], int] = {}
    for status in files.values():
        if status is None:
            continue
        if status.st_nlink == 1:
            total += status.st_size
            continue
        inode = (status.st_dev, status.st_ino)
        links[inode] = links.get(inode, 0) + 1
        if links[inode] == status.st_nlink:
            total += status.st_size
    return total


def undeletable(files: Files) -> Iterator[str]:
    """Yield those of the files that can't be removed: they, or their folder, are read-only."""
    writable: dict[str, bool] = {}
    for path, status in files.items():
        folder = os.path.dirname(path)
        if folder not in writable:
            writable[folder] = _is_allowed(folder, os.W_OK | os.X_OK)
        if not writable[folder] or (status is not None and _is_immutable(path, status)):
            yield path


def link_target(link: str) -> str | None:
    """Return where a symbolic link leads, one step, as an absolute path; None if it is none."""
    try:
        return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
    except OSError:
        return None


def remove_file(path: str) -> str | None:
    """Remove a file and return why that failed; one that is gone already is no failure."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return None
    except OSError as e:
        return f"{path}: {e.strerror}"
    return None


def remove_empty_folders(folders: Iterable[str]) -> None:
    """Remove those of the folders that are empty, the deepest first."""
    for folder in sorted(folders, key=len, reverse=True):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # something else is in it, so it stays


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let other processes of this machine that lock the same folder wait until the block ends.

    The lock is on the folder itself, so that no file is left; without one where a folder can't
    be locked, as on some network file systems.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_immutable(path: str, status: os.stat_result) -> bool:
    # access(2) refuses a file that its mode lets us write only when it is immutable
    mine = os.geteuid() in (0, status.st_uid)
    return mine and bool(status.st_mode & stat.S_IWUSR) and not _is_allowed(path, os.W_OK)


def _is_allowed(path: str, mode: int) -> bool:
    # what another process has deleted meanwhile forbids nothing
    return os.access(path, mode) or not os.path.lexists(path)
