"""One thing to delete from a cache: what goes with it, what stops that, and doing it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ml_experiments.cache.delete.in_use import InUse
from ml_experiments.cache.disk import (
    Files,
    bytes_held,
    list_files,
    remove_empty_folders,
    remove_file,
    stat_files,
    undeletable,
)
from ml_experiments.cache.items import CachedItem, CachedRevision, Scan
from ml_experiments.cache.layout import LOCKS_FOLDER, is_real_folder
from ml_experiments.cache.shared_blobs import StoreForecast, stored_file
from ml_experiments.cache.usage.recorded_uses import use_file


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
        foreign_link: A link in it that doesn't lead to its own blobs or that store, if any.
    """

    item: CachedItem
    commits: tuple[str, ...]
    bytes: int
    files: frozenset[str] = field(repr=False)
    seen: frozenset[str] = field(repr=False)
    side_files: tuple[str, ...] = field(repr=False)
    stored: Mapping[str, str] = field(repr=False)
    foreign_link: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The item's name, or one `name@commit` for each revision."""
        if not self.commits:
            return (self.item.name,)
        return tuple(f"{self.item.name}@{commit}" for commit in self.commits)

    @property
    def key(self) -> str:
        """What tells it from any other, and from itself once it holds other files."""
        what = [self.item.store, self.item.kind, *self.names, *sorted(self.files | self.seen)]
        text = "\0".join(what).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()[:16]

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
        if self.foreign_link is not None:
            return f"has a link that leads elsewhere or into an unknown layout: {self.foreign_link}"
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
        """Delete it and return the bytes freed, and why it is not all gone, or None."""
        files = stat_files(self.files)
        if not files and not self._folders():
            return 0, "is gone already"
        folder = self.item.path if self.item.store != "torch" else self.item.path.parent
        if not is_real_folder(folder, scan.layout.root) or self._now_there() - self.seen:
            return 0, "has changed since the plan was made; make a new one"
        if (why := self.why_not(in_use)) is not None:
            return 0, why
        if (blocked := self._read_only(files)) is not None:
            return 0, f"can't be deleted, and nothing of it was: {blocked} is read-only"
        files |= stat_files(self.side_files)
        store_files = [path for stored in set(self.stored.values()) for path in _with_list(stored)]
        store_before = stat_files(store_files)
        problems = self._remove(scan)
        problems += [why for path in files if (why := remove_file(path)) is not None]
        self._remove_empty_folders()
        problems += [f"{folder} is still there" for folder in self._folders()]
        gone = {path: status for path, status in files.items() if not os.path.lexists(path)}
        in_store = _total(store_before) - _total(stat_files(store_files))
        return bytes_held(gone) + in_store, next(iter(problems), None)

    def _remove(self, scan: Scan) -> list[str]:
        """Let huggingface_hub delete what it knows about."""
        if self.item.repo is None:
            return []
        try:
            plan_of_hub(self.item, self.commits, scan).execute()
        except OSError as e:
            return [f"{e.filename or self.item.path}: {e.strerror}"]
        return []

    def _read_only(self, files: Files) -> str | None:
        folder = str(self.item.path.parent)
        if self._is_folder and not self.commits and not os.access(folder, os.W_OK | os.X_OK):
            return folder
        return next(undeletable(files), None)

    def _folders(self) -> list[str]:
        """Return the folders that must be gone in the end and are there."""
        if self.commits:
            paths = [self.item.path / "snapshots" / commit for commit in self.commits]
        else:
            paths = [self.item.path] if self._is_folder else []
        return [str(path) for path in paths if os.path.lexists(path)]

    def _remove_empty_folders(self) -> None:
        if self._is_folder and self.item.repo is None:
            folders = [folder for folder, _, _ in os.walk(self.item.path)]
            remove_empty_folders(folders)
        remove_empty_folders({os.path.dirname(path) for path in self.side_files})

    @property
    def _is_folder(self) -> bool:
        """Whether it is a folder of its own; checkpoints lie beside others."""
        return self.item.is_repo or self.item.store == "datasets"

    def _now_there(self) -> frozenset[str]:
        if not self._is_folder:
            return self.files
        return frozenset(list_files(str(self.item.path)))


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
    if item.repo is None:
        files = stat_files(item.files)
        paths = frozenset(files)
        return DeletionEntry(item, (), bytes_held(files), paths, paths, (), {}, None)
    everything = list_files(str(item.path))
    seen = frozenset(everything)
    commits = () if revisions is None else tuple(r.commit for r in revisions)
    going = everything if revisions is None else _files_of(item, commits, scan, everything)
    folder = item.path.name
    side = [
        use_file(scan.layout, folder, revision.commit)
        for revision in revisions or item.revisions
        if (folder, revision.commit) in scan.uses
    ]
    # huggingface_hub itself leaves behind the list of files that it keeps of each revision
    side += [str(item.path / "trees" / f"{commit}.json") for commit in commits]
    side_files = stat_files([*side, *locks] if revisions is None else side)
    stored, foreign_link = _follow_links(item, everything, item.path.parent in scan.known_stores)
    return DeletionEntry(
        item=item,
        commits=commits,
        bytes=bytes_held(going) + bytes_held(side_files),
        files=seen if revisions is None else frozenset(going),
        seen=seen,
        side_files=tuple(side_files),
        stored={link: file for link, file in stored.items() if link in going},
        foreign_link=foreign_link,
    )


def plan_of_hub(item: CachedItem, commits: tuple[str, ...], scan: Scan) -> Any:
    """Return huggingface_hub's own deletion strategy for revisions of one repository."""
    info = scan.hub_infos[item.path.parent]
    # huggingface_hub looks a commit hash up in all repositories and takes the first that has
    # it, which may be a mirror of the one that is meant: so it is shown this one only
    alone = replace(info, repos=frozenset({item.repo}))
    return alone.delete_revisions(*(commits or (r.commit for r in item.revisions)))


def _files_of(item: CachedItem, commits: tuple[str, ...], scan: Scan, everything: Files) -> Files:
    plan = plan_of_hub(item, commits, scan)
    single = {str(path) for path in (*plan.blobs, *plan.refs)}
    folders = tuple(f"{path}{os.sep}" for path in plan.snapshots)
    return {
        path: status
        for path, status in everything.items()
        if path in single or path.startswith(folders)
    }


def _follow_links(
    item: CachedItem, files: Files, knows_store: bool
) -> tuple[dict[str, str], str | None]:
    """Return which blobs lead into the shared store, and a link that leads anywhere else."""
    repo = f"{item.path}{os.sep}"
    blobs = f"{repo}blobs{os.sep}"
    folders = [f"{repo}{name}" for name in ("blobs", "snapshots", "refs")]
    stored: dict[str, str] = {}
    for revision in item.repo.revisions:
        folders.append(str(revision.snapshot_path))
        for file in revision.files:
            blob = str(file.blob_path)
            if not blob.startswith(blobs) and blob != str(file.file_path):
                return stored, str(file.file_path)
    # a folder is among the files only if it is none
    if (linked := next((path for path in folders if path in files), None)) is not None:
        return stored, linked
    for path in [path for path, s in files.items() if s is None and path.startswith(blobs)]:
        target = stored_file(path, item.path.parent) if knows_store else None
        if target is None:
            return stored, path
        stored[path] = target
    return stored, None


def _with_list(stored: str) -> tuple[str, str]:
    return stored, f"{stored}.refs"


def _total(files: Files) -> int:
    return sum(status.st_size for status in files.values() if status is not None)
