"""Finds what a container changed in an overlay since its last commit."""

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

# longer than one tick of the clock from which the kernel takes the times of files
_TICK_NS = 20_000_000


@dataclass(frozen=True)
class FolderState:
    """The names in a folder, and its overlay attributes, which are None if they aren't set."""

    names: list[str]
    opaque: str | None
    redirect: str | None


class FolderCache:
    """Reads folders, and caches what is in them until they change.

    A commit reads every folder that a container has written to since its start; most of them
    have not changed since the previous commit.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, FolderState]] = {}

    def read(self, folder: str, status: os.stat_result) -> FolderState:
        """Return the state of a folder, given its current status."""
        changed_ns, state = self._known.get(status.st_ino, (None, None))
        if state is None or changed_ns != status.st_ctime_ns:
            opaque, redirect = _attribute(folder, "opaque"), _attribute(folder, "redirect")
            state = FolderState([entry.name for entry in entries_of(folder)], opaque, redirect)
            if time.time_ns() - status.st_ctime_ns > _TICK_NS:
                self._known[status.st_ino] = (status.st_ctime_ns, state)
        return state


class OverlayChanges:
    """Reads the upper folder of an overlay, in which the kernel stores all changes.

    A character device 0:0 in it is a deletion. A folder is merged with the lower folder at the
    same path, unless it has one of two attributes: `opaque` if it replaced a folder, `redirect` if
    it was renamed (then it is merged with the lower folder of the path in the attribute). See
    Documentation/filesystems/overlayfs.rst of the Linux kernel.
    """

    def __init__(
        self,
        upper: Path,
        lower: Path,
        committed: dict[str, Signature],
        folders: FolderCache,
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._folders = folders
        self._found = ChangeSet(committed)

    def read(self) -> ChangeSet:
        """Return the changes since the last commit."""
        upper = str(self._upper)
        try:
            state = self._folders.read(upper, os.lstat(upper))
        except FileNotFoundError:
            # the container is not running yet, or has ended: nothing was deleted
            return self._found
        self._read_folder(upper, state.names, "", "", force=False)
        self._found.delete_gone()
        return self._found

    def _read_folder(
        self, folder: str, names: list[str], prefix: str, merged: str | None, *, force: bool
    ) -> None:
        """Read what is in a folder.

        Args:
            folder: The folder in the upper layer.
            names: The names in it.
            prefix: Its path in the volume, with a slash at the end.
            merged: The folder of the lower layer that it is merged with, if any, with a slash.
            force: Record everything as changed, because the path was just emptied.
        """
        for name in names:
            source = f"{folder}/{name}"
            try:
                status = os.lstat(source)
            except FileNotFoundError:
                # just deleted by the container, which the next commit will record
                continue
            path = prefix + name
            below = None if merged is None else merged + name
            if stat.S_ISDIR(status.st_mode):
                self._read_subfolder(source, path, below, status, force=force)
            elif self._found.is_changed(path, signature_of(status), force=force):
                if below == path:
                    self._delete_hidden(path)
                deleted = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                change = Delete(path) if deleted else Write(path, Path(source))
                self._found.changes.append(change)
        if merged is not None and merged != prefix:
            self._read_moved(self._lower / merged, prefix, names, force=force)

    def _read_subfolder(
        self, folder: str, path: str, below: str | None, status: os.stat_result, *, force: bool
    ) -> None:
        state = self._folders.read(folder, status)
        opaque, redirect = state.opaque, state.redirect
        merged = below
        if opaque == "y":
            merged = None
        elif redirect is not None:
            beside = below.rpartition("/")[0] if below else ""
            merged = (redirect if redirect[0] == "/" else f"{beside}/{redirect}").lstrip("/")
        # two folders with the same inode number differ in their attributes
        signature = (*signature_of(status), opaque, redirect)
        if self._found.is_changed(path, signature, force=force):
            self._found.changes.append(MakeFolder(path, stat.S_IMODE(status.st_mode)))
            previous = self._found.committed.get(path, ())
            # what a folder hides is deleted once, with the topmost folder that hides it
            if below == path != merged and previous[-2:] != (opaque, redirect):
                force = self._delete_hidden(path) or force
        inner = None if merged is None else merged + "/"
        self._read_folder(folder, state.names, path + "/", inner, force=force)

    def _read_moved(
        self, lower: Path, prefix: str, exclude: Collection[str], *, force: bool
    ) -> None:
        """Read those files of a renamed folder that are only in the lower layer."""
        for entry in entries_of(str(lower)):
            if entry.name in exclude:
                continue
            path, status = prefix + entry.name, entry.stat(follow_symlinks=False)
            if self._found.is_changed(path, ("moved", *signature_of(status)), force=force):
                self._found.changes.append(change_to(path, Path(entry.path), status))
            if stat.S_ISDIR(status.st_mode):
                self._read_moved(Path(entry.path), path + "/", (), force=force)

    def _delete_hidden(self, path: str) -> bool:
        """Delete what the container could see below a folder, but nothing that others added."""
        hidden = self._lower / path
        if not hidden.is_dir() or hidden.is_symlink():
            return False
        below = [found for found, _ in walk(hidden, path + "/")]
        self._found.changes.extend(Delete(each) for each in reversed(below))
        return True


def _attribute(folder: str, name: str) -> str | None:
    """Return an attribute that the overlay set, either as root or in a user namespace."""
    for space in ("trusted", "user"):
        try:
            return os.getxattr(folder, f"{space}.overlay.{name}").decode()
        except OSError:
            # not set, or not readable without privileges, where only the other one is used
            continue
    return None
