"""What a container changed in an overlay since its last commit."""

import os
import stat
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ml_experiments.emulator.volume_changes import (
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


class OverlayChanges:
    """Reads the upper folder of an overlay, where the kernel leaves what was changed.

    In there, a character device 0:0 stands for a deletion. A folder shows what the lower folder
    has at the same path too, unless it has the attribute `opaque`, which says that it replaced a
    folder, or `redirect`, which says that it was renamed, and from what. See
    Documentation/filesystems/overlayfs.rst of the Linux kernel.
    """

    def __init__(self, upper: Path, lower: Path, committed: dict[str, Signature]) -> None:
        self._upper = upper
        self._lower = lower
        self._committed = committed
        self._found = ChangeSet()

    def read(self) -> ChangeSet:
        """Return the changes since the commit that `committed` is from."""
        self._read_folder(self._upper, "", "", again=False)
        self._found.delete_gone(self._committed)
        return self._found

    def _read_folder(self, folder: Path, prefix: str, shown: str | None, *, again: bool) -> None:
        """Read a folder.

        Args:
            folder: the folder in the upper layer.
            prefix: its path in the volume, with a slash at the end.
            shown: which folder of the lower layer shows in it, with a slash at the end.
            again: whether to say everything again, because the path was just emptied.
        """
        names = set()
        for entry in entries_of(folder):
            names.add(entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                # the next commit will say that it was deleted
                continue
            path = prefix + entry.name
            below = None if shown is None else shown + entry.name
            if stat.S_ISDIR(status.st_mode):
                self._read_subfolder(Path(entry.path), path, below, status, again=again)
            elif self._is_new(path, signature_of(status), again=again):
                if below == path:
                    self._delete_hidden(path)
                deleted = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                change = Delete(path) if deleted else Write(path, Path(entry.path))
                self._found.changes.append(change)
        if shown is not None and shown != prefix:
            self._read_moved(self._lower / shown, prefix, names, again=again)

    def _read_subfolder(
        self, folder: Path, path: str, below: str | None, status: os.stat_result, *, again: bool
    ) -> None:
        opaque, redirect = _attribute(folder, "opaque"), _attribute(folder, "redirect")
        shown = below
        if opaque == "y":
            shown = None
        elif redirect is not None:
            beside = below.rpartition("/")[0] if below else ""
            shown = (redirect if redirect[0] == "/" else f"{beside}/{redirect}").lstrip("/")
        # The attributes tell folders apart whose inode has the same number.
        signature = (*signature_of(status), opaque, redirect)
        if self._is_new(path, signature, again=again):
            self._found.changes.append(MakeFolder(path, stat.S_IMODE(status.st_mode)))
            before = self._committed.get(path, ())
            # what a folder hides is deleted once, with its topmost folder
            if below == path != shown and before[-2:] != (opaque, redirect):
                again = self._delete_hidden(path) or again
        inner = None if shown is None else shown + "/"
        self._read_folder(folder, path + "/", inner, again=again)

    def _read_moved(self, lower: Path, prefix: str, but: Collection[str], *, again: bool) -> None:
        """Read what shows in a renamed folder though it isn't in the upper layer."""
        for entry in entries_of(lower):
            if entry.name in but:
                continue
            path, status = prefix + entry.name, entry.stat(follow_symlinks=False)
            if self._is_new(path, ("moved", *signature_of(status)), again=again):
                change = change_to(path, Path(entry.path), status)
                if isinstance(change, Write):
                    # the lower layer never changes
                    change = replace(change, shareable=True)
                self._found.changes.append(change)
            if stat.S_ISDIR(status.st_mode):
                self._read_moved(Path(entry.path), path + "/", (), again=again)

    def _is_new(self, path: str, signature: Signature, *, again: bool) -> bool:
        self._found.signatures[path] = signature
        return again or self._committed.get(path) != signature

    def _delete_hidden(self, path: str) -> bool:
        """Delete what this container could see below a folder, and nothing that others added."""
        hidden = self._lower / path
        if not hidden.is_dir() or hidden.is_symlink():
            return False
        below = [found for found, _ in walk(hidden, path + "/")]
        self._found.changes.extend(Delete(each) for each in reversed(below))
        return True


def _attribute(folder: Path, name: str) -> str | None:
    """Return an attribute that the overlay set, as root or in a user namespace."""
    for space in ("trusted", "user"):
        try:
            return os.getxattr(folder, f"{space}.overlay.{name}").decode()
        except OSError:
            # not set, or not readable without privileges: then the other space is in use
            continue
    return None
