"""Changes that a container made to its copy of a volume since its last commit."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# differs if the file or folder has changed since the last commit
Signature = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Write:
    """Write a file or link to `path`."""

    path: str
    source: Path


@dataclass(frozen=True)
class MakeFolder:
    """Create a folder at `path`, unless it exists, and set its mode."""

    path: str
    mode: int


@dataclass(frozen=True)
class Delete:
    """Delete the file at `path`, or the folder if it is empty by then."""

    path: str


Change = Write | MakeFolder | Delete


@dataclass
class ChangeSet:
    """Changes since a commit, in the order of their application.

    Attributes:
        committed: Path -> signature, for everything that the last commit covered.
        changes: The changes.
    """

    committed: dict[str, Signature]
    changes: list[Change] = field(default_factory=list)
    _changed: dict[str, Signature] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _gone: list[str] = field(default_factory=list)

    def is_changed(self, path: str, signature: Signature, *, force: bool = False) -> bool:
        """Record what is at a path now; return whether it differs from the last commit.

        Args:
            path: The path in the volume.
            signature: The signature of what is there.
            force: Return True even if nothing differs.
        """
        self._seen.add(path)
        if not force and self.committed.get(path) == signature:
            return False
        self._changed[path] = signature
        return True

    def delete_gone(self) -> None:
        """Add the deletion of what was committed and isn't there any more, before all else."""
        self._gone = sorted(self.committed.keys() - self._seen, reverse=True)
        self.changes[:0] = [Delete(path) for path in self._gone]

    def mark_committed(self) -> None:
        """Update `committed`, after the changes have been applied to the volume."""
        self.committed.update(self._changed)
        for path in self._gone:
            del self.committed[path]


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature of a file or folder; that of a folder is independent of its content."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return status.st_ino, mode
    return status.st_ino, mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copy_changes(view: Path, committed: dict[str, Signature]) -> ChangeSet:
    """Return the changes in a copy of a volume since its last commit."""
    found = ChangeSet(committed)
    for path, entry in walk(view):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            # just deleted by the container, so its committed version is deleted as well
            continue
        if found.is_changed(path, signature_of(status)):
            found.changes.append(change_to(path, Path(entry.path), status))
    found.delete_gone()
    return found


def walk(
    folder: str | Path, prefix: str = "", *, recursive: bool = True
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield everything below a folder with its path, folders before their content."""
    for entry in entries_of(str(folder)):
        path = prefix + entry.name
        yield path, entry
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, path + "/")


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, nothing if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        # just deleted by the container, which the next commit will record
        return []


def change_to(path: str, source: Path, status: os.stat_result) -> MakeFolder | Write:
    """Return the change that creates a copy of a file or folder at `path`."""
    if stat.S_ISDIR(status.st_mode):
        return MakeFolder(path, stat.S_IMODE(status.st_mode))
    return Write(path, source)
