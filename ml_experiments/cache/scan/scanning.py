"""Scanning a cache: repositories by huggingface_hub's own scan, and what that doesn't cover."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import scan_cache_dir

from ml_experiments.cache.items import (
    CachedItem,
    CachedRevision,
    Leftover,
    Scan,
    Store,
    Unrecognised,
)
from ml_experiments.cache.layout import (
    LOCKS_FOLDER,
    OWN_FOLDER,
    SHARED_BLOBS_FOLDER,
    CacheLayout,
    Kind,
    find_layout,
    is_real_folder,
)
from ml_experiments.cache.scan.prepared_datasets import scan_datasets
from ml_experiments.cache.scan.torch_checkpoints import scan_checkpoints
from ml_experiments.cache.scan.unfinished_repos import read_unfinished_repo
from ml_experiments.cache.shared_blobs import is_known_store
from ml_experiments.cache.usage.recorded_uses import read_uses

_KIND_BY_FOLDER: dict[str, Kind] = {
    "models": "model",
    "datasets": "dataset",
    "spaces": "space",
    "kernels": "kernel",
}
# what huggingface_hub, others and we keep beside repositories
_FURNITURE = {
    LOCKS_FOLDER,
    OWN_FOLDER,
    "CACHEDIR.TAG",
    "version.txt",
    "version_diffusers_cache.txt",
}


class _Found:
    """Gathers what the parts of a scan find."""

    def __init__(self) -> None:
        self.items: list[CachedItem] = []
        self.leftovers: list[Leftover] = []
        self.unrecognised: list[Unrecognised] = []
        self.bytes = 0
        self.hub_infos: dict[Path, Any] = {}


def scan(cache_dir: str | Path) -> Scan:
    """Return what a cache folder holds; one that isn't there holds nothing.

    Raises:
        CacheError: If the path is empty or leads to something that is no folder.
    """
    layout = find_layout(cache_dir)
    found = _Found()
    uses = read_uses(layout)
    for folder in layout.hub_folders:
        if _is_scannable(folder, layout, found):
            _scan_hub_folder(folder, layout, uses, found)
    if layout.datasets is not None and _is_scannable(layout.datasets, layout, found):
        _add_store(found, *scan_datasets(layout.datasets))
    if layout.checkpoints is not None and _is_scannable(layout.checkpoints, layout, found):
        _add_store(found, *scan_checkpoints(layout.checkpoints))
    found.bytes += sum(leftover.bytes for leftover in found.leftovers)
    disk = shutil.disk_usage(layout.root) if layout.root.is_dir() else None
    return Scan(
        layout=layout,
        items=tuple(sorted(found.items, key=lambda i: (i.name, i.kind, i.store))),
        leftovers=tuple(sorted(found.leftovers, key=lambda leftover: leftover.path)),
        unrecognised=tuple(sorted(found.unrecognised, key=lambda entry: entry.path)),
        bytes=found.bytes,
        disk_total=None if disk is None else disk.total,
        disk_free=None if disk is None else disk.free,
        hub_infos=found.hub_infos,
        known_stores=frozenset(hub for hub in found.hub_infos if is_known_store(hub)),
        uses=uses,
    )


def parse_repo_folder(folder: str) -> tuple[Kind, str] | None:
    """Return kind and name of a folder such as `models--org--name`."""
    prefix, dashes, name = folder.partition("--")
    kind = _KIND_BY_FOLDER.get(prefix)
    return (kind, name.replace("--", "/")) if kind is not None and dashes and name else None


def _is_scannable(folder: Path, layout: CacheLayout, found: _Found) -> bool:
    if is_real_folder(folder, layout.root):
        return True
    if folder.is_symlink() or folder.exists():
        why = "is reached by a symbolic link, which is not followed; name its target instead"
        found.unrecognised.append(Unrecognised(folder, why))
    return False


def _add_store(
    found: _Found,
    items: list[CachedItem],
    leftovers: list[Leftover],
    unrecognised: list[Unrecognised],
) -> None:
    found.items.extend(items)
    found.leftovers.extend(leftovers)
    found.unrecognised.extend(unrecognised)
    found.bytes += sum(item.bytes for item in items)


def _scan_hub_folder(
    folder: Path, layout: CacheLayout, uses: dict[tuple[str, str], float], found: _Found
) -> None:
    with paused_collector():
        info = scan_cache_dir(folder)
    found.hub_infos[folder] = info
    found.bytes += info.size_on_disk
    store: Store = "hub" if folder == layout.hub else "transformers"
    recognised: set[str] = set(_FURNITURE)
    links = {entry.name for entry in os.scandir(folder) if entry.is_symlink()}
    for repo in info.repos:
        if not repo.revisions:
            continue
        name = repo.repo_path.name
        recognised.add(name)
        if name in links:
            why = "is a symbolic link, which is not followed"
            found.unrecognised.append(Unrecognised(repo.repo_path, why))
            found.bytes -= repo.size_on_disk
            continue
        revisions = tuple(
            sorted(
                (_revision(repo, r, uses.get((name, r.commit_hash), 0.0)) for r in repo.revisions),
                key=lambda r: (-r.last_modified, r.commit),
            )
        )
        last_used = max([repo.last_modified, *(r.last_used for r in revisions)])
        found.items.append(
            CachedItem(
                name=repo.repo_id,
                kind=repo.repo_type,
                store=store,
                path=repo.repo_path,
                bytes=repo.size_on_disk,
                file_count=repo.nb_files,
                last_used=last_used,
                revisions=revisions,
                repo=repo,
            )
        )
    for partial in info.incomplete_files:
        _add_leftover(found, partial.file_path, partial.file_path.parent.parent.name, "incomplete")
    _add_locks(folder / LOCKS_FOLDER, found)
    _add_rest(folder, store, recognised, info.warnings, found)


def _revision(repo: Any, revision: Any, recorded: float) -> CachedRevision:
    if not revision.files:
        accessed = 0.0
    elif len(repo.revisions) == 1:
        accessed = repo.last_accessed  # the same, and there already
    else:
        accessed = max(file.blob_last_accessed for file in revision.files)
    return CachedRevision(
        commit=revision.commit_hash,
        refs=tuple(sorted(revision.refs)),
        bytes=revision.size_on_disk,
        file_count=len(revision.files),
        last_used=max(accessed, recorded, revision.last_modified),
        last_modified=revision.last_modified,
    )


def _add_locks(folder: Path, found: _Found) -> None:
    if not is_real_folder(folder, folder.parent):
        return
    for lock in sorted(folder.glob("*/*.lock")):
        if is_real_folder(lock.parent, folder) and not lock.is_symlink():
            _add_leftover(found, lock, lock.parent.name, "lock")


def _add_leftover(found: _Found, path: Path, folder: str, reason: Any) -> None:
    parsed = parse_repo_folder(folder)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return  # the download ended while we looked
    if parsed is not None and not path.parent.is_symlink():
        kind, name = parsed
        found.leftovers.append(Leftover(reason, name, kind, path, status.st_size, status.st_mtime))


def _add_rest(
    folder: Path, store: Store, recognised: set[str], warnings: list[Any], found: _Found
) -> None:
    """Add what huggingface_hub's scan did not find or could not read."""
    for path in folder.iterdir():
        if path.name in recognised:
            continue
        if path.name == SHARED_BLOBS_FOLDER:
            if not is_known_store(folder):
                why = "is a store of blobs in a layout that this version doesn't know"
                found.unrecognised.append(Unrecognised(path, why))
            continue
        why = "is not part of a Hugging Face cache"
        parsed = parse_repo_folder(path.name)
        if parsed is not None and is_real_folder(path, folder):
            unfinished = read_unfinished_repo(path, *parsed, store)
            if unfinished is not None:
                _add_store(found, [unfinished], [], [])
                continue
        if parsed is not None:
            said = next((str(w) for w in warnings if str(path) in str(w)), "not readable")
            why = f"is damaged: {said}"
        found.unrecognised.append(Unrecognised(path, why))


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keep Python from looking for reference cycles.

    Scans and plans make hundreds of thousands of small objects and no cycles: it costs a tenth.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # makes them old, or the collector would look at them all the moment it is back
                gc.freeze()
                gc.unfreeze()
            gc.enable()
