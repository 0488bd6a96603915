"""Files as they are on disk: what is there, what it holds, and what removing it frees."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping

# None for whatever isn't a regular file: a symbolic link, a socket
Files = Mapping[str, os.stat_result | None]


def list_files(folder: str) -> dict[str, os.stat_result | None]:
    """Return all that is below a folder, by path; symbolic links are listed, never followed."""
    found: dict[str, os.stat_result | None] = {}
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue  # it vanished since its parent was read
        for entry in entries:
            if entry.is_symlink():
                found[entry.path] = None
            elif entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[entry.path] = status
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                found[entry.path] = None
    return found


def stat_files(paths: Iterable[str]) -> dict[str, os.stat_result | None]:
    """Return those of the paths that exist."""
    found: dict[str, os.stat_result | None] = {}
    for path in paths:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
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
    """Yield those of the files that can't be removed: their folder or they are read-only."""
    writable: dict[str, bool] = {}
    for path, status in files.items():
        folder = os.path.dirname(path)
        if folder not in writable:
            writable[folder] = os.access(folder, os.W_OK | os.X_OK)
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


def _is_immutable(path: str, status: os.stat_result) -> bool:
    # access(2) refuses a file that its mode lets us write only when it is immutable
    mine = os.geteuid() in (0, status.st_uid)
    return mine and bool(status.st_mode & stat.S_IWUSR) and not os.access(path, os.W_OK)
