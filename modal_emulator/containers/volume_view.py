"""A container's own view of a volume, whose changes others see only after a commit."""

from __future__ import annotations

import os
import shutil
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modal_emulator.containers.overlay_changes import FolderCache, OverlayChanges
from modal_emulator.containers.sandbox_namespace import BusyMountError, Namespace
from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.storage.file_copy import copy_file
from modal_emulator.volumes.changes import ChangeSet, Signature, copy_changes, signature_of, walk
from modal_emulator.volumes.folder import VolumeFolder
from modal_emulator.volumes.limit import VolumeLimit, usage_of
from modal_emulator.volumes.paths import resolve, split_path

# folder in a sandbox for the layers of its overlays
_INNER_FOLDER = "/__modal/.volumes"


class OpenFilesError(Exception):
    """Raised when a volume can't be reloaded because a file of it is open."""


@dataclass(frozen=True)
class VolumeMount:
    """A volume, its path in a container, and how it is mounted."""

    volume_id: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""


class VolumeView(ABC):
    """One volume as a container sees it, from its start until `close`."""

    def __init__(self, mount: VolumeMount, folder: VolumeFolder) -> None:
        self.mount = mount
        self._folder = folder
        self._below = "/".join(split_path(mount.sub_path))
        self._snapshot = self._take_snapshot()
        self._committed: dict[str, Signature] = {}
        self._lock = threading.RLock()
        self._closed = False

    def commit(self) -> None:
        """Write the changes of this container to the volume."""
        with self._lock:
            if self._closed or self.mount.read_only:
                return
            found = self._changes()
            self._folder.apply(found.changes, self._below)
            found.mark_committed()

    @abstractmethod
    def reload(self) -> None:
        """Update the view to what others have committed.

        Raises:
            OpenFilesError: If a file of the volume is open in the container.
        """

    def close(self) -> None:
        """End the view, after the end of the container."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._folder.drop_snapshot(self._snapshot)

    @abstractmethod
    def _changes(self) -> ChangeSet:
        """Return the changes since the last commit."""

    @property
    def _original(self) -> Path:
        return resolve(self._snapshot, self._below)

    def _take_snapshot(self) -> Path:
        if self._below:
            # as on Modal, the folder is created when the container starts
            self._folder.make_folder(self._below)
        return self._folder.take_snapshot()

    def _next_snapshot(self) -> None:
        latest = self._take_snapshot()
        self._folder.drop_snapshot(self._snapshot)
        self._snapshot = latest


class OverlayView(VolumeView):
    """An overlay over a snapshot, in the container's mount namespace."""

    def __init__(
        self,
        mount: VolumeMount,
        folder: VolumeFolder,
        namespace: Namespace,
        private: Path,
        *,
        upper_in_memory: bool,
    ) -> None:
        super().__init__(mount, folder)
        self._namespace = namespace
        self._inner = f"{_INNER_FOLDER}/{mount.volume_id}"
        # a tmpfs can have a size limit, a folder can't
        in_memory = upper_in_memory or folder.limit != VolumeLimit()
        self._private = None if in_memory else private
        self._folders = FolderCache()
        self._generation = 0
        private.mkdir(parents=True, exist_ok=True)

    def plan(self) -> dict[str, Any]:
        """Return how `sandbox_mounts` has to mount the view."""
        inner_snapshots = f"{self._inner}/snapshots"
        lower = self._original.relative_to(self._snapshot.parent).as_posix()
        layer = f"{self._inner}/private/{self._generation}"
        return {
            "target": self.mount.mount_path,
            "read_only": self.mount.read_only,
            "snapshots": str(self._snapshot.parent),
            "inner_snapshots": inner_snapshots,
            "private": self._private and str(self._private),
            "inner_private": f"{self._inner}/private",
            "tmpfs_options": None if self._private else self._tmpfs_options(),
            "lower": f"{inner_snapshots}/{lower}",
            "upper": f"{layer}/upper",
            "work": f"{layer}/work",
            "overlay_options": self._namespace.overlay_options,
        }

    def reload(self) -> None:
        with self._lock:
            self.commit()
            try:
                self._mount_latest()
            except BusyMountError as e:
                opened = self._namespace.open_file_below(self.mount.mount_path)
                raise OpenFilesError(f"path {opened} is open" if opened else str(e)) from e

    def _mount_latest(self) -> None:
        with self._namespace.unmounted(self.mount.mount_path) as mount_again:
            try:
                # files that were written between the first commit and the unmounting
                self.commit()
                self._next_snapshot()
                self._delete_layer()
                self._committed = {}
                self._generation += 1
            finally:
                mount_again(self.plan())

    def _changes(self) -> ChangeSet:
        upper = self._layer() / "upper"
        return OverlayChanges(upper, self._original, self._committed, self._folders).read()

    def _layer(self) -> Path:
        private = self._private or self._namespace.path_inside(f"{self._inner}/private")
        return private / str(self._generation)

    def _delete_layer(self) -> None:
        if not self.mount.read_only:
            delete_tree(self._layer())

    def _tmpfs_options(self) -> str:
        limit = self._folder.limit
        if limit == VolumeLimit():
            return "mode=755"
        used = usage_of(self._snapshot)
        options = ["mode=755"]
        if limit.max_bytes is not None:
            # 0 would mean no limit
            options.append(f"size={max(limit.max_bytes - used.size_bytes, 4096)}")
        if limit.max_files is not None:
            # 6 more for the overlay's own folders and the files that it creates when mounted
            options.append(f"nr_inodes={max(limit.max_files - used.files, 2) + 6}")
        return ",".join(options)


class CopiedView(VolumeView):
    """A copy of a snapshot, for machines without mount namespaces.

    A read-only volume can be written to, but the changes are never committed.
    """

    def __init__(self, mount: VolumeMount, folder: VolumeFolder, private: Path) -> None:
        super().__init__(mount, folder)
        self.path = private
        shutil.copytree(self._original, private, symlinks=True, copy_function=copy_file)
        self._committed = self._signatures()

    def reload(self) -> None:
        with self._lock:
            open_file = _open_file_below(self.path)
            if open_file is not None:
                raise OpenFilesError(f"path {open_file} is open")
            self.commit()
            self._next_snapshot()
            for entry in list(os.scandir(self.path)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink()
            shutil.copytree(
                self._original,
                self.path,
                symlinks=True,
                copy_function=copy_file,
                dirs_exist_ok=True,
            )
            self._committed = self._signatures()

    def _changes(self) -> ChangeSet:
        return copy_changes(self.path, self._committed)

    def _signatures(self) -> dict[str, Signature]:
        return {
            path: signature_of(entry.stat(follow_symlinks=False)) for path, entry in walk(self.path)
        }


def _open_file_below(folder: Path) -> str | None:
    """Return a file below a folder that a process has open, as far as the system shows it."""
    real = os.path.realpath(folder) + "/"
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            # just closed, or of another user's process
            continue
        if target.startswith(real):
            return target.removeprefix(real)
    return None
