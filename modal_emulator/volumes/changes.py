"""What a container changed in its copy of a volume since its last commit."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What tells whether something is as it was at the last commit.
Signature = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Write:
    """A file or link to put at `path`."""

    path: str
    source: Path


@dataclass(frozen=True)
class MakeFolder:
    """A folder that has to be at `path`."""

    path: str
    mode: int


@dataclass(frozen=True)
class Delete:
    """A file, or a folder if it is empty by then, that has to go."""

    path: str


Change = Write | MakeFolder | Delete


@dataclass
class ChangeSet:
    """Changes since a commit, in the order of their application.

    Attributes:
        committed: What was there at the commit.
    """

    committed: dict[str, Signature]
    changes: list[Change] = field(default_factory=list)
    _fresh: dict[str, Signature] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _gone: list[str] = field(default_factory=list)

    def is_new(self, path: str, signature: Signature, *, again: bool = False) -> bool:
        """Take note of what is at a path now; return whether the commit had it otherwise.

        Args:
            path: the path in the volume.
            signature: what is there.
            again: whether to say yes though the commit had it.
        """
        self._seen.add(path)
        if not again and self.committed.get(path) == signature:
            return False
        self._fresh[path] = signature
        return True

    def delete_gone(self) -> None:
        """Delete first of all what was committed and isn't there any more."""
        self._gone = sorted(self.committed.keys() - self._seen, reverse=True)
        self.changes[:0] = [Delete(path) for path in self._gone]

    def settle(self) -> None:
        """Bring `committed` up to date; the changes have been applied."""
        self.committed.update(self._fresh)
        for path in self._gone:
            del self.committed[path]


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature of a file or folder; a folder's doesn't tell of what is in it."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return status.st_ino, mode
    return status.st_ino, mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copy_changes(view: Path, committed: dict[str, Signature]) -> ChangeSet:
    """Compare a plain copy with the signatures of its last commit."""
    found = ChangeSet(committed)
    for path, entry in walk(view):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            # the container deletes while we look: what was committed of it goes, too
            continue
        if found.is_new(path, signature_of(status)):
            found.changes.append(change_to(path, Path(entry.path), status))
    found.delete_gone()
    return found


def walk(
    folder: str | Path, prefix: str = "", *, recursive: bool = True
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield everything below a folder with its relative path, parents first."""
    for entry in entries_of(str(folder)):
        path = prefix + entry.name
        yield path, entry
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, path + "/")


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, nothing if there is no folder (any more)."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        # when the container deletes while we look, the next commit will say so
        return []


def change_to(path: str, source: Path, status: os.stat_result) -> MakeFolder | Write:
    """Return the change that brings something to `path`."""
    if stat.S_ISDIR(status.st_mode):
        return MakeFolder(path, stat.S_IMODE(status.st_mode))
    return Write(path, source)
