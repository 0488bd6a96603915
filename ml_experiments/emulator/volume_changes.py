"""What a container changed in its copy of a volume since its last commit."""

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
    """Changes in the order of their application, and the state that they lead to."""

    changes: list[Change] = field(default_factory=list)
    signatures: dict[str, Signature] = field(default_factory=dict)

    def delete_gone(self, committed: dict[str, Signature]) -> None:
        """Delete first of all what was committed and isn't there any more."""
        gone = [path for path in committed if path not in self.signatures]
        self.changes[:0] = [Delete(path) for path in sorted(gone, reverse=True)]


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature of a file or folder; a folder's doesn't tell of what is in it."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return status.st_ino, mode
    return status.st_ino, mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copy_changes(view: Path, committed: dict[str, Signature]) -> ChangeSet:
    """Compare a plain copy with the signatures of its last commit."""
    found = ChangeSet()
    for path, entry in walk(view):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            # the container deletes while we look: what was committed of it goes, too
            continue
        found.signatures[path] = signature_of(status)
        if committed.get(path) != found.signatures[path]:
            found.changes.append(change_to(path, Path(entry.path), status))
    found.delete_gone(committed)
    return found


def walk(
    folder: str | Path, prefix: str = "", *, recursive: bool = True
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield everything below a folder with its relative path, parents first."""
    for entry in entries_of(str(folder)):
        path = prefix + entry.name
        yield path, entry
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, path + "/")


def entries_of(folder: str) -> list["os.DirEntry[str]"]:
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
