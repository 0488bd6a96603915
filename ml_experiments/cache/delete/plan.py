"""Deleting from a cache: a plan that can be looked at, and its execution.

`plan_deletion()` changes nothing. `DeletionPlan.execute()` removes what the plan names and
nothing else: an entry that has changed since, or came into use, is left alone and reported.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ml_experiments.cache.delete.entry import GONE, DeletionEntry, make_entry
from ml_experiments.cache.delete.in_use import InUse, find_in_use, is_recent
from ml_experiments.cache.delete.selection import Filters
from ml_experiments.cache.disk import remove_empty_folders, remove_file, stat_files
from ml_experiments.cache.items import CachedItem, CachedRevision, Leftover, Scan
from ml_experiments.cache.layout import LOCKS_FOLDER, Kind, parse_repo_folder
from ml_experiments.cache.patterns import NamePattern, suggest_name
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.shared_blobs import StoreForecast

BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Kept:
    """Something that stays, and why: the pattern meant it, or its deletion failed."""

    name: str
    kind: str
    bytes: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"name": self.name, "kind": self.kind, "bytes": self.bytes, "why": self.why}


@dataclass(frozen=True)
class DeletionOutcome:
    """What a deletion did, or in a dry run would do.

    Attributes:
        entries: What is gone.
        leftovers: Interrupted downloads and stale locks that are gone.
        kept: What the pattern meant and the plan left out.
        failed: What the plan named and is still there, at least in part.
        bytes: What was freed, by the failed ones too.
        notes: Further messages for the user.
    """

    cache_dir: Path
    dry_run: bool
    entries: tuple[DeletionEntry, ...]
    leftovers: tuple[Leftover, ...]
    kept: tuple[Kept, ...]
    failed: tuple[Kept, ...]
    bytes: int
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is gone, `name@commit` where other revisions stay."""
        return tuple(name for entry in self.entries for name in entry.names)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, with the documented keys `deleted`, `freed_mb` and `dry_run`."""
        return {
            "deleted": len(self.names),
            "freed_mb": self.bytes / BYTES_PER_MB,
            "dry_run": self.dry_run,
            "freed_bytes": self.bytes,
            "names": list(self.names),
            "entries": [entry.to_dict() for entry in self.entries],
            "leftovers": [leftover.to_dict(self.cache_dir) for leftover in self.leftovers],
            "kept": [kept.to_dict() for kept in self.kept],
            "failed": [kept.to_dict() for kept in self.failed],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class DeletionPlan:
    """What would be deleted, what that frees, and what stays and why; nothing has happened."""

    scan: Scan = field(repr=False)
    entries: tuple[DeletionEntry, ...]
    leftovers: tuple[Leftover, ...]
    kept: tuple[Kept, ...]
    bytes: int
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what would go, `name@commit` where other revisions stay."""
        return tuple(name for entry in self.entries for name in entry.names)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, in the shape of an outcome."""
        going = (self.entries, self.leftovers, self.kept)
        root = self.scan.layout.root
        return DeletionOutcome(root, True, *going, (), self.bytes, self.notes).to_dict()

    def execute(self) -> DeletionOutcome:
        """Delete what the plan names; what can't be deleted is reported, and the rest goes on."""
        root = self.scan.layout.root
        in_use = find_in_use(self.scan.layout)
        gone: list[DeletionEntry] = []
        failed: list[Kept] = []
        notes = list(self.notes)
        freed = 0
        for entry in self.entries:
            bytes_freed, why = entry.delete(self.scan, in_use)
            freed += bytes_freed
            if why is None:
                gone.append(replace(entry, bytes=bytes_freed))
            elif why == GONE:
                notes += [f"{name} {GONE}" for name in entry.names]
            else:
                left = max(entry.bytes - bytes_freed, 0)
                failed.extend(Kept(name, entry.item.kind, left, why) for name in entry.names)
        gone_leftovers = []
        for leftover in self.leftovers:
            bytes_freed, why = _delete_leftover(leftover, in_use)
            freed += bytes_freed
            if why is None:
                gone_leftovers.append(replace(leftover, bytes=bytes_freed))
            elif why != GONE:
                failed.append(Kept(leftover.name, leftover.reason, leftover.bytes, why))
        remove_empty_folders({str(lo.path.parent) for lo in gone_leftovers if lo.reason == "lock"})
        outcome = (tuple(gone), tuple(gone_leftovers), self.kept, tuple(failed))
        return DeletionOutcome(root, False, *outcome, freed, tuple(notes))


def plan_deletion(
    cache_dir: str | Path,
    pattern: str | None = None,
    *,
    kinds: Sequence[Kind] = ("model",),
    older_than: timedelta | None = None,
    larger_than: int | None = None,
    keep_latest: bool = False,
    only: Collection[str] | None = None,
) -> DeletionPlan:
    """Work out what a deletion would remove, without changing anything.

    Args:
        cache_dir: The cache folder.
        pattern: Names to delete, as `stabilityai/*` or `org/name@abc123`; all by default.
        kinds: Kinds of things to delete.
        older_than: Keep what was used within this time.
        larger_than: Keep what holds this many bytes or fewer.
        keep_latest: Keep each repository's latest revision: that of main, else the newest.
        only: Keys of an earlier plan's entries and paths of its leftovers, as `to_dict()` has
            them; what it did not name, or what holds other files by now, stays.

    Raises:
        CacheError: If the pattern, a filter or the folder is not usable.
    """
    parsed = None if pattern is None else NamePattern.parse(pattern)
    filters = Filters(parsed, tuple(kinds), older_than, larger_than, keep_latest)
    draft = _Draft(scan(cache_dir), filters, only)
    draft.plan_items()
    draft.plan_leftovers()
    leftover_bytes = sum(leftover.bytes for leftover in draft.leftovers)
    return DeletionPlan(
        scan=draft.scan,
        entries=tuple(draft.entries),
        leftovers=tuple(draft.leftovers),
        kept=tuple(draft.kept),
        bytes=sum(entry.bytes for entry in draft.entries) + leftover_bytes,
        notes=draft.notes(),
    )


class _Draft:
    """A plan while it is being made."""

    def __init__(self, found: Scan, filters: Filters, only: Collection[str] | None) -> None:
        self.scan = found
        self.entries: list[DeletionEntry] = []
        self.leftovers: list[Leftover] = []
        self.kept: list[Kept] = []
        self._filters = filters
        self._only = only
        self._now = time.time()
        self._in_use = find_in_use(found.layout)
        self._locks: dict[str, list[str]] = {}
        for leftover in found.leftovers:
            if leftover.reason == "lock":
                folder = str(leftover.path.parent)
                self._locks.setdefault(folder, []).append(str(leftover.path))
        self._stores = {hub: StoreForecast(hub) for hub in found.layout.hub_folders}
        self._downloading = {
            leftover.path.parent.parent
            for leftover in found.leftovers
            if leftover.reason == "incomplete" and is_recent(leftover.modified, self._now)
        }

    def plan_items(self) -> None:
        """Sort items and revisions into those that go and those that stay."""
        for unreadable in self.scan.unrecognised:
            parsed = parse_repo_folder(unreadable.path.name)
            if parsed is not None and self._filters.matches(parsed[1]):
                self.kept.append(Kept(parsed[1], parsed[0], 0, unreadable.why))
        for item in self.scan.items:
            for selection in self._filters.select(item, self._now):
                if selection.why is not None:
                    self._keep(item, selection.revisions, selection.why)
                elif item.path in self._downloading:
                    self._keep(item, selection.revisions, "is being downloaded")
                else:
                    self._plan(item, selection.revisions)

    def plan_leftovers(self) -> None:
        """Add interrupted downloads and stale locks that don't go with an item anyway."""
        whole = {entry.item.path for entry in self.entries if not entry.commits}
        root = self.scan.layout.root
        with_items = {path for entry in self.entries for path in entry.side_files}
        for leftover in self.scan.leftovers:
            covered = leftover.path.parent.parent in whole or str(leftover.path) in with_items
            if covered or not self._filters.selects_leftover(leftover, self._now):
                continue
            if is_recent(leftover.modified, self._now) or self._in_use.owner_of(leftover.path):
                if leftover.reason == "incomplete":  # a lock that is in use needs no mention
                    why = "is a download that may be going on"
                    self.kept.append(Kept(leftover.name, leftover.reason, leftover.bytes, why))
            elif self._only is None or leftover.to_dict(root)["path"] in self._only:
                self.leftovers.append(leftover)

    def notes(self) -> tuple[str, ...]:
        """Return further messages for the user."""
        if self.scan.disk_total is None:
            return (f"there is no folder {self.scan.layout.root}",)
        pattern = self._filters.pattern
        if pattern is None or self.entries or self.kept or self.leftovers:
            return ()
        if self._only:
            return (f"all of it {GONE}",)
        hint = suggest_name(pattern.given, [item.name for item in self.scan.items])
        return (f"nothing in the cache matches {pattern.given!r}{hint}",)

    def _plan(self, item: CachedItem, revisions: tuple[CachedRevision, ...] | None) -> None:
        locks = self._locks.get(f"{item.path.parent}/{LOCKS_FOLDER}/{item.path.name}", [])
        entry = make_entry(item, revisions, self.scan, locks)
        why = entry.why_not(self._in_use)
        if why is None and self._only is not None and entry.key not in self._only:
            why = "was not in the plan that was confirmed, or has changed since"
        if why is not None:
            self._keep(item, revisions, why)
            return
        if entry.stored:
            entry = entry.forecast(self._stores[item.path.parent])
        self.entries.append(entry)

    def _keep(
        self, item: CachedItem, revisions: tuple[CachedRevision, ...] | None, why: str
    ) -> None:
        if revisions is None:
            self.kept.append(Kept(item.name, item.kind, item.bytes, why))
            return
        for revision in revisions:
            name = f"{item.name}@{revision.commit}"
            self.kept.append(Kept(name, item.kind, revision.bytes, why))


def _delete_leftover(leftover: Leftover, in_use: InUse) -> tuple[int, str | None]:
    path = str(leftover.path)
    if (owner := in_use.owner_of(leftover.path)) is not None:
        return 0, f"is in use by {owner}"
    status = stat_files([path]).get(path)
    if status is None:
        return 0, GONE
    if status.st_mtime != leftover.modified:
        return 0, "was written to since the plan was made"
    why = remove_file(path)
    return (0, why) if why is not None else (status.st_size, None)
