"""Scanning a cache folder: what each part of it holds, and what is no part of a cache."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal

from ml_experiments.cache.disk import list_files
from ml_experiments.cache.items import CachedItem, Leftover, Scan, Store, Unrecognised
from ml_experiments.cache.layout import (
    LOCKS_FOLDER,
    OWN_FOLDER,
    SHARED_BLOBS_FOLDER,
    CacheLayout,
    find_layout,
    is_real_folder,
    parse_repo_folder,
)
from ml_experiments.cache.scan.prepared_datasets import read_dataset
from ml_experiments.cache.scan.repositories import is_incomplete, read_repo
from ml_experiments.cache.shared_blobs import is_known_store, list_stored
from ml_experiments.cache.usage.recorded_uses import read_uses

# what huggingface_hub, others and we keep beside repositories
_FURNITURE = {
    LOCKS_FOLDER,
    OWN_FOLDER,
    "CACHEDIR.TAG",
    "version.txt",
    "version_diffusers_cache.txt",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
}
_CHECKPOINT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar", ".zip")
# torch downloads to `<file>.<32 hex digits>.partial` and renames it
_PARTIAL_CHECKPOINT = re.compile(r"(.+)\.[0-9a-f]{32}\.partial")


def scan(cache_dir: str | Path) -> Scan:
    """Return what a cache folder holds; one that isn't there holds nothing.

    Nothing in it makes a scan fail or wait, and what vanishes meanwhile is left out.

    Raises:
        CacheError: If the path is empty or leads to something that is no readable folder.
    """
    layout = find_layout(cache_dir)
    found = _Scanner(layout)
    for folder in layout.hub_folders:
        found.read_hub_folder(folder)
    found.read_datasets()
    found.read_checkpoints()
    disk = shutil.disk_usage(layout.root) if os.path.isdir(layout.root) else None
    return Scan(
        layout=layout,
        items=tuple(sorted(found.items, key=lambda i: (i.name, i.kind, i.store))),
        leftovers=tuple(sorted(found.leftovers, key=lambda leftover: leftover.path)),
        unrecognised=tuple(sorted(found.unrecognised, key=lambda entry: entry.path)),
        bytes=found.bytes_held() + sum(leftover.bytes for leftover in found.leftovers),
        disk_total=None if disk is None else disk.total,
        disk_free=None if disk is None else disk.free,
        known_stores=frozenset(found.known_stores),
        uses=found.uses,
    )


class _Scanner:
    """Gathers what the parts of a cache hold."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self.uses = read_uses(layout)
        self.items: list[CachedItem] = []
        self.leftovers: list[Leftover] = []
        self.unrecognised: list[Unrecognised] = []
        self.known_stores: list[Path] = []
        self._stored: list[os.stat_result] = []

    def bytes_held(self) -> int:
        """Return what all items and shared stores hold, each file once."""
        statuses = [*self._stored, *(s for item in self.items for s in item.blobs.values())]
        return sum({(s.st_dev, s.st_ino): s.st_size for s in statuses}.values())

    def read_hub_folder(self, folder: Path) -> None:
        """Read the repositories in a folder, and what lies beside them."""
        store: Store = "hub" if folder == self._layout.hub else "transformers"
        entries = self._entries(folder)
        if any(entry.name == SHARED_BLOBS_FOLDER for entry in entries):
            if is_known_store(folder):
                self.known_stores.append(folder)
                self._stored += list_stored(folder)
            else:
                why = "is a store of blobs in a layout that this version can't read"
                self._leave(folder / SHARED_BLOBS_FOLDER, why)
        for entry in entries:
            parsed = parse_repo_folder(entry.name)
            if entry.name in _FURNITURE or entry.name == SHARED_BLOBS_FOLDER:
                continue
            if parsed is None or not (entry.is_symlink() or entry.is_dir(follow_symlinks=False)):
                self._leave(Path(entry.path), "is not part of a Hugging Face cache")
            elif entry.is_symlink():
                self._leave(Path(entry.path), "is a symbolic link, which is not followed")
            elif (item := read_repo(Path(entry.path), *parsed, store, self.uses)) is None:
                why = "is damaged: it has no snapshots, and files that no download leaves"
                self._leave(Path(entry.path), why)
            else:
                self.items.append(item)
                for path, status in item.files.items():
                    if is_incomplete(path) and os.path.dirname(path) == f"{item.path}{os.sep}blobs":
                        self._add_leftover("incomplete", entry.name, path, status)
        locks = folder / LOCKS_FOLDER
        if is_real_folder(locks, folder):
            for path, status in list_files(str(locks)).items():
                parent = Path(path).parent
                if parent.parent == locks and path.endswith(".lock"):
                    self._add_leftover("lock", parent.name, path, status)

    def read_datasets(self) -> None:
        """Read the tables that the datasets library prepared; `downloads/` is left alone."""
        for entry in self._entries(self._layout.datasets):
            item = read_dataset(entry) if entry.is_dir(follow_symlinks=False) else None
            if item is None:
                self._leave(Path(entry.path), "is not a prepared dataset")
            else:
                self.items.append(item)

    def read_checkpoints(self) -> None:
        """Read the single files that torch.hub keeps in TORCH_HOME/hub/checkpoints."""
        for entry in self._entries(self._layout.checkpoints):
            path = Path(entry.path)
            if not entry.is_file(follow_symlinks=False):
                self._leave(path, "is not a checkpoint file")
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # deleted since the folder was read
            if match := _PARTIAL_CHECKPOINT.fullmatch(entry.name):
                size, modified = status.st_size, status.st_mtime
                self.leftovers.append(
                    Leftover("incomplete", match[1], "torch", path, size, modified)
                )
            elif entry.name.endswith(_CHECKPOINT_SUFFIXES):
                self.items.append(
                    CachedItem(
                        name=entry.name,
                        kind="torch",
                        store="torch",
                        path=path,
                        bytes=status.st_size,
                        file_count=1,
                        last_used=max(status.st_atime, status.st_mtime),
                        files={entry.path: status},
                        blobs={entry.path: status},
                    )
                )
            else:
                self._leave(path, "has no suffix of a checkpoint")

    def _entries(self, folder: Path | None) -> list[os.DirEntry[str]]:
        if folder is None or not os.path.lexists(folder):
            return []
        if not is_real_folder(folder, self._layout.root):
            why = "is reached by a symbolic link, which is not followed; name its target instead"
            is_link = os.path.isdir(folder)
            self._leave(folder, why if is_link else "is not a folder")
            return []
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as e:
            self._leave(folder, f"can't be read: {e.strerror}")
            return []

    def _add_leftover(
        self,
        reason: Literal["incomplete", "lock"],
        folder: str,
        path: str,
        status: os.stat_result | None,
    ) -> None:
        parsed = parse_repo_folder(folder)
        if parsed is not None and status is not None:
            kind, name = parsed
            size, modified = status.st_size, status.st_mtime
            self.leftovers.append(Leftover(reason, name, kind, Path(path), size, modified))

    def _leave(self, path: Path, why: str) -> None:
        self.unrecognised.append(Unrecognised(path, why))
