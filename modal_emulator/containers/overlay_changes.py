"""What a container changed in an overlay since its last commit."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from modal_emulator.volumes.changes import (
    ChangeSet,
    Delete,
    MakeFolder,
    Signature,
    Write,
    change_to,
    entries_of,
    signature_of,
    walk,
)

# Longer than between two ticks of the clock that dates changes of files.
_TICK_NS = 20_000_000


@dataclass(frozen=True)
class FolderState:
    """The names in a folder, and the overlay's attributes of it, None where one isn't set."""

    names: list[str]
    opaque: str | None
    redirect: str | None


class FolderMemory:
    """Reads folders, and remembers what was in them until they change.

    A commit looks at all that a container has written since its start, most of it in folders
    that don't change any more.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, FolderState]] = {}

    def read(self, folder: str, status: os.stat_result) -> FolderState:
        """Return the state of a folder that has this status."""
        changed_ns, state = self._known.get(status.st_ino, (None, None))
        if state is None or changed_ns != status.st_ctime_ns:
            opaque, redirect = _attribute(folder, "opaque"), _attribute(folder, "redirect")
            state = FolderState([entry.name for entry in entries_of(folder)], opaque, redirect)
            if time.time_ns() - status.st_ctime_ns > _TICK_NS:
                self._known[status.st_ino] = (status.st_ctime_ns, state)
        return state


class OverlayChanges:
    """Reads the upper folder of an overlay, where the kernel leaves what was changed.

    In there, a character device 0:0 stands for a deletion. A folder shows what the lower folder
    has at the same path too, unless it has the attribute `opaque`, which says that it replaced a
    folder, or `redirect`, which says that it was renamed, and from what. See
    Documentation/filesystems/overlayfs.rst of the Linux kernel.
    """

    def __init__(
        self,
        upper: Path,
        lower: Path,
        committed: dict[str, Signature],
        memory: FolderMemory,
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._memory = memory
        self._found = ChangeSet(committed)

    def read(self) -> ChangeSet:
        """Return the changes since the commit that `committed` is from."""
        upper = str(self._upper)
        try:
            state = self._memory.read(upper, os.lstat(upper))
        except FileNotFoundError:
            # the container isn't up yet, or has ended: that deletes nothing
            return self._found
        self._read_folder(upper, state.names, "", "", again=False)
        self._found.delete_gone()
        return self._found

    def _read_folder(
        self, folder: str, names: list[str], prefix: str, shown: str | None, *, again: bool
    ) -> None:
        """Read what is in a folder.

        Args:
            folder: the folder in the upper layer.
            names: what is in it.
            prefix: its path in the volume, with a slash at the end.
            shown: which folder of the lower layer shows in it, with a slash at the end.
            again: whether to say everything again, because the path was just emptied.
        """
        for name in names:
            source = f"{folder}/{name}"
            try:
                status = os.lstat(source)
            except FileNotFoundError:
                # the next commit will say that it was deleted
                continue
            path = prefix + name
            below = None if shown is None else shown + name
            if stat.S_ISDIR(status.st_mode):
                self._read_subfolder(source, path, below, status, again=again)
            elif self._found.is_new(path, signature_of(status), again=again):
                if below == path:
                    self._delete_hidden(path)
                deleted = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                change = Delete(path) if deleted else Write(path, Path(source))
                self._found.changes.append(change)
        if shown is not None and shown != prefix:
            self._read_moved(self._lower / shown, prefix, names, again=again)

    def _read_subfolder(
        self, folder: str, path: str, below: str | None, status: os.stat_result, *, again: bool
    ) -> None:
        state = self._memory.read(folder, status)
        opaque, redirect = state.opaque, state.redirect
        shown = below
        if opaque == "y":
            shown = None
        elif redirect is not None:
            beside = below.rpartition("/")[0] if below else ""
            shown = (redirect if redirect[0] == "/" else f"{beside}/{redirect}").lstrip("/")
        # The attributes tell folders apart whose inode has the same number.
        signature = (*signature_of(status), opaque, redirect)
        if self._found.is_new(path, signature, again=again):
            self._found.changes.append(MakeFolder(path, stat.S_IMODE(status.st_mode)))
            before = self._found.committed.get(path, ())
            # what a folder hides is deleted once, with its topmost folder
            if below == path != shown and before[-2:] != (opaque, redirect):
                again = self._delete_hidden(path) or again
        inner = None if shown is None else shown + "/"
        self._read_folder(folder, state.names, path + "/", inner, again=again)

    def _read_moved(self, lower: Path, prefix: str, but: Collection[str], *, again: bool) -> None:
        """Read what shows in a renamed folder though it isn't in the upper layer."""
        for entry in entries_of(str(lower)):
            if entry.name in but:
                continue
            path, status = prefix + entry.name, entry.stat(follow_symlinks=False)
            if self._found.is_new(path, ("moved", *signature_of(status)), again=again):
                self._found.changes.append(change_to(path, Path(entry.path), status))
            if stat.S_ISDIR(status.st_mode):
                self._read_moved(Path(entry.path), path + "/", (), again=again)

    def _delete_hidden(self, path: str) -> bool:
        """Delete what this container could see below a folder, and nothing that others added."""
        hidden = self._lower / path
        if not hidden.is_dir() or hidden.is_symlink():
            return False
        below = [found for found, _ in walk(hidden, path + "/")]
        self._found.changes.extend(Delete(each) for each in reversed(below))
        return True


def _attribute(folder: str, name: str) -> str | None:
    """Return an attribute that the overlay set, as root or in a user namespace."""
    for space in ("trusted", "user"):
        try:
            return os.getxattr(folder, f"{space}.overlay.{name}").decode()
        except OSError:
            # not set, or not readable without privileges: then the other space is in use
            continue
    return None
