"""Unchangeable copies of a volume's content, for containers and for downloads."""

import os
import shutil
import time
from pathlib import Path

from ml_experiments.emulator.ids import new_id

# How long a file that a client reads stays as it was when the client asked for it.
DOWNLOAD_LIFETIME_S = 3600.0
# A file has one hard link on Modal, and programs that tell what a deletion frees look at that:
# so files are copied, up to a size from which on that would make containers start slowly.
LARGEST_COPY = 64 * 1024 * 1024


class VolumeSnapshots:
    """Snapshots share large files with the content, which nobody writes to; not thread-safe."""

    def __init__(self, content: Path, folder: Path) -> None:
        self._content = content
        self._snapshots = folder / "snapshots"
        self._downloads = folder / "downloads"
        self._users: dict[Path, int] = {}
        self._latest: Path | None = None
        for each in (self._snapshots, self._downloads):
            # what a killed server left
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir(parents=True)

    def take(self) -> Path:
        """Return a folder with the content as it is now, for one more user."""
        if self._latest is None:
            snapshot = self._snapshots / new_id("snapshot")
            shutil.copytree(self._content, snapshot, symlinks=True, copy_function=_copy_or_link)
            self._latest = snapshot
        self._users[self._latest] = self._users.get(self._latest, 0) + 1
        return self._latest

    def drop(self, snapshot: Path) -> None:
        """Say that one user of a snapshot has gone."""
        self._users[snapshot] -= 1
        if not self._users[snapshot] and snapshot != self._latest:
            self._delete(snapshot)

    def content_changed(self) -> None:
        """Say that the latest snapshot is not what the content is now."""
        latest, self._latest = self._latest, None
        if latest is not None and not self._users[latest]:
            self._delete(latest)

    def take_download(self, source: Path) -> Path:
        """Return a file that stays as the source is now for an hour at least."""
        self._delete_old_downloads()
        folder = self._downloads / new_id("download")
        folder.mkdir()
        link_file(source, folder / "file")
        return folder / "file"

    def _delete(self, snapshot: Path) -> None:
        del self._users[snapshot]
        # gone already when the volume was deleted under its users
        if snapshot.exists():
            shutil.rmtree(snapshot)

    def _delete_old_downloads(self) -> None:
        oldest = time.time() - DOWNLOAD_LIFETIME_S
        for folder in self._downloads.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


def _copy_or_link(source: str, destination: str) -> None:
    if os.lstat(source).st_size <= LARGEST_COPY:
        shutil.copy2(source, destination, follow_symlinks=False)
    else:
        link_file(source, destination)


def link_file(source: str | Path, destination: str | Path) -> None:
    """Give a file that nobody will change a second name."""
    os.link(source, destination, follow_symlinks=False)
