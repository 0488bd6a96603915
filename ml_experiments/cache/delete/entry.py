"""One thing to delete from a cache: what goes with it, what prevents that, and doing it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_experiments.cache.delete.in_use import InUse
from ml_experiments.cache.disk import (
    Files,
    bytes_held,
    link_target,
    list_files,
    list_folders,
    remove_empty_folders,
    remove_file,
    stat_files,
    undeletable,
)
from ml_experiments.cache.items import CachedItem, CachedRevision, Scan
from ml_experiments.cache.layout import LOCKS_FOLDER, is_real_folder
from ml_experiments.cache.shared_blobs import StoreForecast, stored_file
from ml_experiments.cache.usage.recorded_uses import use_file

GONE = "is gone already"
# a ref must never lead to a snapshot that is gone, nor a snapshot to a blob that is
_DELETION_ORDER = {"refs": 0, "snapshots": 1, "blobs": 3}


@dataclass(frozen=True)
class DeletionEntry:
    """An item to delete, or some of its revisions.

    Attributes:
        commits: The revisions that go; empty if all of the item goes.
        bytes: What deleting it frees.
        files: What goes with it.
        seen: All that its folder held; anything more, later, means that it has changed.
        side_files: Its locks, recorded uses and lists of files, which go with it as far as
            they are there.
        stored: Files of huggingface_hub's shared store, by the blob that links to them.
        obstacle: What in it forbids to delete it, if anything does.
    """

    item: CachedItem
    commits: tuple[str, ...]
    bytes: int
    files: frozenset[str] = field(repr=False)
    seen: frozenset[str] = field(repr=False)
    side_files: tuple[str, ...] = field(repr=False)
    stored: Mapping[str, str] = field(repr=False)
    obstacle: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The item's name, or one `name@commit` for each revision."""
        if not self.commits:
            return (self.item.name,)
        return tuple(f"{self.item.name}@{commit}" for commit in self.commits)

    @property
    def key(self) -> str:
        """An identifier of the entry and its exact files; changes when the files do."""
        what = [self.item.store, self.item.kind, *self.names, *sorted(self.files | self.seen)]
        return hashlib.sha256(os.fsencode("\0".join(what))).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "key": self.key,
            "name": self.item.name,
            "kind": self.item.kind,
            "store": self.item.store,
            "revisions": list(self.commits),
            "bytes": self.bytes,
            "last_used": self.item.last_used,
        }

    def forecast(self, store: StoreForecast) -> DeletionEntry:
        """Return it with what its links free in the shared store, entries before it considered."""
        return replace(self, bytes=self.bytes + store.drop(self.stored))

    def why_not(self, in_use: InUse) -> str | None:
        """Return what forbids deleting it, or None."""
        if self.obstacle is not None:
            return self.obstacle
        if self.item.path.name in in_use.repos:
            return f"is in use by {in_use.repos[self.item.path.name]}"
        if not in_use.files:
            return None
        locks = f"{self.item.path.parent / LOCKS_FOLDER / self.item.path.name}{os.sep}"
        for path, owner in in_use.files.items():
            if self.item.is_repo and path.startswith(locks):
                return f"is being downloaded by {owner}"
            if path in self.files or path in self.stored.values():
                return f"a file that would go is in use by {owner}"
        return None

    def delete(self, scan: Scan, in_use: InUse) -> tuple[int, str | None]:
        """Delete it; return the bytes freed, and why it is not all gone or `GONE`, or None."""
        files = stat_files(self.files)
        if not files and not self._folders():
            return 0, GONE
        folder = self.item.path.parent if self._is_file else self.item.path
        is_moved = not is_real_folder(folder, scan.layout.root) and os.path.lexists(folder)
        if is_moved or self._now_there() - self.seen:
            return 0, "has changed since the plan was made; make a new one"
        if (why := self.why_not(in_use)) is not None:
            return 0, why
        if (blocked := self._read_only(files)) is not None:
            return 0, f"can't be deleted, and nothing of it was: {blocked} is read-only"
        files |= stat_files(self.side_files)
        store_files = [path for stored in set(self.stored.values()) for path in _with_list(stored)]
        store_before = stat_files(store_files)
        in_order = sorted(files, key=self._order)
        problems = [why for p in in_order if p not in self.stored and (why := remove_file(p))]
        problems += self._remove_stored()
        self._remove_empty_folders()
        problems += [f"{folder} is still there" for folder in self._folders()]
        gone = {path: status for path, status in files.items() if not os.path.lexists(path)}
        in_store = _total(store_before) - _total(stat_files(store_files))
        return bytes_held(gone) + in_store, next(iter(problems), None)

    def _order(self, path: str) -> int:
        part = path[len(str(self.item.path)) + 1 :].partition(os.sep)[0]
        return _DELETION_ORDER.get(part, 2) if self.item.is_repo else 0

    def _remove_stored(self) -> list[str]:
        """Remove links into the shared store, and what no other link leads to; return problems."""
        if not self.stored:
            return []
        from huggingface_hub import DeleteCacheStrategy  # slow to import, and most plans need none

        blobs = frozenset(map(Path, self.stored))
        none = frozenset[Path]()
        strategy = DeleteCacheStrategy(
            0, blobs=blobs, refs=none, repos=none, snapshots=none, cache_dir=self.item.path.parent
        )
        try:
            strategy.execute()
        except OSError as e:
            return [f"{e.filename or self.item.path}: {e.strerror}"]
        return []

    def _read_only(self, files: Files) -> str | None:
        folder = str(self.item.path.parent)
        if not self._is_file and not self.commits and not os.access(folder, os.W_OK | os.X_OK):
            return folder
        return next(undeletable(files), None)

    def _folders(self) -> list[str]:
        """Return the folders that must be gone in the end and are there."""
        if self.commits:
            paths = [self.item.path / "snapshots" / commit for commit in self.commits]
        else:
            paths = [] if self._is_file else [self.item.path]
        return [str(path) for path in paths if os.path.lexists(path)]

    def _remove_empty_folders(self) -> None:
        remove_empty_folders(f for folder in self._folders() for f in list_folders(folder))
        remove_empty_folders({os.path.dirname(path) for path in self.side_files})

    @property
    def _is_file(self) -> bool:
        """Whether it is a single file, which lies beside others, and not a folder of its own."""
        return self.item.store == "torch"

    def _now_there(self) -> frozenset[str]:
        return self.files if self._is_file else frozenset(list_files(str(self.item.path)))


def make_entry(
    item: CachedItem, revisions: tuple[CachedRevision, ...] | None, scan: Scan, locks: list[str]
) -> DeletionEntry:
    """Gather what goes with an item, or with some of its revisions.

    Args:
        item: What to delete.
        revisions: Those to delete; None for all of the item.
        scan: Where it was found.
        locks: The lock files of the item, which go with all of it.
    """
    seen = frozenset(item.files)
    commits = () if revisions is None else tuple(r.commit for r in revisions)
    going = item.files if revisions is None else _files_of(item, commits)
    folder = item.path.name
    side = [
        use_file(scan.layout, folder, revision.commit)
        for revision in revisions or item.revisions
        if (folder, revision.commit) in scan.uses
    ]
    # the list of files that huggingface_hub keeps of each revision
    side += [str(item.path / "trees" / f"{commit}.json") for commit in commits]
    side_files = stat_files([*side, *locks] if revisions is None else side)
    stored, obstacle = _follow_links(item, item.path.parent in scan.known_stores)
    return DeletionEntry(
        item=item,
        commits=commits,
        bytes=bytes_held(going) + bytes_held(side_files),
        files=frozenset(going),
        seen=seen,
        side_files=tuple(side_files),
        stored={link: file for link, file in stored.items() if link in going},
        obstacle=obstacle,
    )


def _files_of(item: CachedItem, commits: tuple[str, ...]) -> Files:
    """Return the files of revisions, without the blobs that other revisions have too."""
    going = [revision for revision in item.revisions if revision.commit in commits]
    staying = [revision for revision in item.revisions if revision.commit not in commits]
    single = {file.blob for revision in going for file in revision.files}
    single -= {file.blob for revision in staying for file in revision.files}
    single |= {str(item.path / "refs" / ref) for revision in going for ref in revision.refs}
    folders = tuple(f"{item.path / 'snapshots' / commit}{os.sep}" for commit in commits)
    return {
        path: status
        for path, status in item.files.items()
        if path in single or path.startswith(folders)
    }


def _follow_links(item: CachedItem, knows_store: bool) -> tuple[dict[str, str], str | None]:
    """Return which blobs lead into the shared store, and what forbids to delete the item."""
    repo = f"{item.path}{os.sep}"
    own_blobs = f"{repo}blobs{os.sep}"
    stored: dict[str, str] = {}
    for path in [path for path, status in item.files.items() if status is None]:
        part, _, rest = path[len(repo) :].partition(os.sep)
        target = link_target(path)
        if target is None:
            if os.path.isdir(path):
                return stored, f"has a folder that can't be read: {path}"
            continue  # no link: a FIFO, a socket, a device
        file = stored_file(path, item.path.parent) if part == "blobs" and knows_store else None
        if file is not None:
            stored[path] = file
        elif item.is_repo and (
            part == "blobs"
            or not rest
            or (part == "snapshots" and not target.startswith(own_blobs))
        ):
            return stored, f"has a link that leads elsewhere or into an unknown layout: {path}"
    return stored, None


def _with_list(stored: str) -> tuple[str, str]:
    return stored, f"{stored}.refs"


def _total(files: Files) -> int:
    return sum(status.st_size for status in files.values() if status is not None)
