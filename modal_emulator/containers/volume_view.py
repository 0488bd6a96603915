"""A container's own view of a volume: what it changes, others see after its commit only."""

from __future__ import annotations

import os
import shutil
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modal_emulator.containers.overlay_changes import FolderMemory, OverlayChanges
from modal_emulator.containers.sandbox_namespace import BusyMountError, Namespace
from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.storage.file_copy import copy_file
from modal_emulator.volumes.changes import ChangeSet, Signature, copy_changes, signature_of, walk
from modal_emulator.volumes.folder import VolumeFolder
from modal_emulator.volumes.limit import VolumeLimit, usage_of
from modal_emulator.volumes.paths import resolve, split_path

# Where a sandbox keeps what the overlays in it are made of.
_INNER_FOLDER = "/__modal/.volumes"


class OpenFilesError(Exception):
    """Raised when a volume can't be reloaded because a file of it is open; says which."""


@dataclass(frozen=True)
class VolumeMount:
    """Which volume a container has at which path, and how."""

    volume_id: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""


class VolumeView(ABC):
    """What a container sees of one volume, between `__init__` and `close`."""

    def __init__(self, mount: VolumeMount, folder: VolumeFolder) -> None:
        self.mount = mount
        self._folder = folder
        self._below = "/".join(split_path(mount.sub_path))
        self._snapshot = self._take_snapshot()
        self._committed: dict[str, Signature] = {}
        self._lock = threading.RLock()
        self._closed = False

    def commit(self) -> None:
        """Show to later containers and reloads what this container has written."""
        with self._lock:
            if self._closed or self.mount.read_only:
                return
            found = self._changes()
            self._folder.apply(found.changes, self._below)
            found.settle()

    @abstractmethod
    def reload(self) -> None:
        """Show to this container what others have committed.

        Raises:
            OpenFilesError: when a file of the volume is open in the container.
        """

    def close(self) -> None:
        """Give the snapshot back; the container has ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._folder.drop_snapshot(self._snapshot)

    @abstractmethod
    def _changes(self) -> ChangeSet:
        """Return what is new since the last commit."""

    @property
    def _original(self) -> Path:
        return resolve(self._snapshot, self._below)

    def _take_snapshot(self) -> Path:
        if self._below:
            # as on Modal: created when the container starts up
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
        # A folder has no size limit, a tmpfs has.
        in_memory = upper_in_memory or folder.limit != VolumeLimit()
        self._private = None if in_memory else private
        self._memory = FolderMemory()
        self._generation = 0
        private.mkdir(parents=True, exist_ok=True)

    def plan(self) -> dict[str, Any]:
        """Return how `sandbox_mounts` has to mount the view as it is now."""
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
        """Commit, and mount an overlay over the latest snapshot in place of the current one."""
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
                # what was written between the first commit and the unmounting
                self.commit()
                self._next_snapshot()
                self._delete_layer()
                self._committed = {}
                self._generation += 1
            finally:
                mount_again(self.plan())

    def _changes(self) -> ChangeSet:
        upper = self._layer() / "upper"
        return OverlayChanges(upper, self._original, self._committed, self._memory).read()

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
            # 0 would be without limit
            options.append(f"size={max(limit.max_bytes - used.size_bytes, 4096)}")
        if limit.max_files is not None:
            # the folders that the overlay itself needs, and what it tries out when it is mounted
            options.append(f"nr_inodes={max(limit.max_files - used.files, 2) + 6}")
        return ",".join(options)


class CopiedView(VolumeView):
    """A plain copy of a snapshot, for machines without mount namespaces.

    A read-only volume is not protected here; what is written to it is just never committed.
    """

    def __init__(self, mount: VolumeMount, folder: VolumeFolder, private: Path) -> None:
        super().__init__(mount, folder)
        self.path = private
        shutil.copytree(self._original, private, symlinks=True, copy_function=copy_file)
        self._committed = self._signatures()

    def reload(self) -> None:
        """Commit, and bring the copy to the state of the latest snapshot."""
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
    """Return a file below a folder that a process has open, where the system tells."""
    real = os.path.realpath(folder) + "/"
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            # closed meanwhile, or another user's process
            continue
        if target.startswith(real):
            return target.removeprefix(real)
    return None
