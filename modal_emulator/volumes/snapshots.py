"""Copies of a volume's content at one moment, for containers and for downloads."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modal_emulator.storage.file_copy import copy_file
from modal_emulator.storage.ids import new_id
from modal_emulator.volumes.changes import Signature, signature_of

# how long the URL of a file is valid, with the content of the moment of the request
DOWNLOAD_LIFETIME_S = 3600.0
# a copy of a file of this size is kept for the next snapshot
MIN_LARGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class LargeCopy:
    """The copy of a large file, with the path and signature of the original."""

    path: Path
    original: Path
    signature: Signature

    def is_current(self) -> bool:
        """Return whether the original is unchanged."""
        try:
            return signature_of(self.original.lstat()) == self.signature
        except (FileNotFoundError, NotADirectoryError):
            return False


class VolumeSnapshots:
    """The snapshots of one volume; not thread-safe.

    A snapshot shares no file with the content, because programs that compute the space that a
    deletion frees read the number of hard links, which is one on Modal. To copy large files only
    once, those of a deleted snapshot are kept as spares for the next one.
    """

    def __init__(self, content: Path, folder: Path) -> None:
        self._content = content
        self._snapshots = folder / "snapshots"
        self._spares_folder = folder / "spares"
        self._downloads = folder / "downloads"
        self._users: dict[Path, int] = {}
        self._large: dict[Path, list[LargeCopy]] = {}
        self._spares: dict[Path, LargeCopy] = {}
        self._latest: Path | None = None
        for each in (self._snapshots, self._spares_folder, self._downloads):
            # files of a server that was killed
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir(parents=True)

    def take(self) -> Path:
        """Return a folder with the current content; call `drop` after use."""
        if self._latest is None:
            snapshot, large = self._snapshots / new_id("snapshot"), list[LargeCopy]()
            copy = partial(self._copy, large)
            shutil.copytree(self._content, snapshot, symlinks=True, copy_function=copy)
            self._latest, self._large[snapshot] = snapshot, large
        self._users[self._latest] = self._users.get(self._latest, 0) + 1
        return self._latest

    def drop(self, snapshot: Path) -> None:
        """End one use of a snapshot."""
        self._users[snapshot] -= 1
        if not self._users[snapshot] and snapshot != self._latest:
            self._delete(snapshot)

    def content_changed(self) -> None:
        """Make the next `take` copy the content anew."""
        latest, self._latest = self._latest, None
        if latest is not None and not self._users[latest]:
            self._delete(latest)
        for spare in [each for each in self._spares.values() if not each.is_current()]:
            self._spares.pop(spare.original).path.unlink(missing_ok=True)

    def take_download(self, source: Path) -> Path:
        """Return a file with the current content of the source, kept for at least an hour."""
        self._delete_old_downloads()
        folder = self._downloads / new_id("download")
        folder.mkdir()
        os.link(source, folder / "file", follow_symlinks=False)
        return folder / "file"

    def _copy(self, large: list[LargeCopy], source: str, destination: str) -> None:
        status = os.lstat(source)
        if status.st_size < MIN_LARGE_BYTES:
            copy_file(source, destination)
            return
        spare = self._spares.pop(Path(source), None)
        if spare is None:
            copy_file(source, destination)
        else:
            spare.path.rename(destination)
        large.append(LargeCopy(Path(destination), Path(source), signature_of(status)))

    def _delete(self, snapshot: Path) -> None:
        del self._users[snapshot]
        large = self._large.pop(snapshot)
        # the volume itself may have been deleted
        if not snapshot.exists():
            return
        # the latest snapshot already has its own copies
        if self._latest is None:
            for each in large:
                self._spare(each)
        shutil.rmtree(snapshot)

    def _spare(self, copy: LargeCopy) -> None:
        if copy.original not in self._spares and copy.is_current():
            path = copy.path.rename(self._spares_folder / new_id("spare"))
            self._spares[copy.original] = LargeCopy(path, copy.original, copy.signature)

    def _delete_old_downloads(self) -> None:
        oldest = time.time() - DOWNLOAD_LIFETIME_S
        for folder in self._downloads.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)
