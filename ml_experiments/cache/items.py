"""What a scan finds: models and other things with a name, leftovers, and all the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_experiments.cache.disk import Files
from ml_experiments.cache.layout import CacheLayout, Kind

Store = Literal["hub", "transformers", "datasets", "torch"]


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file of a revision; `blob` is what it links to, or the file itself if it is no link."""

    path: str
    blob: str
    bytes: int


@dataclass(frozen=True)
class Damage:
    """A link or a ref that leads to nothing; removing it lets the next download mend it."""

    path: str
    what: str


@dataclass(frozen=True)
class CachedRevision:
    """One revision of a repository; its bytes may be shared with other revisions.

    Attributes:
        last_used: Unix time in seconds; see `CachedItem.last_used`.
    """

    commit: str
    refs: tuple[str, ...]
    bytes: int
    file_count: int
    last_used: float
    last_modified: float
    files: tuple[CachedFile, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, without its files."""
        return {
            "commit": self.commit,
            "refs": list(self.refs),
            "bytes": self.bytes,
            "file_count": self.file_count,
            "last_used": self.last_used,
            "last_modified": self.last_modified,
        }


@dataclass(frozen=True)
class CachedItem:
    """A repository, prepared dataset or checkpoint.

    Attributes:
        name: As on the Hub; of a torch checkpoint, its file name.
        store: Which part of the cache holds it; one name may stand in two.
        bytes: What its files hold, each once however many revisions share it.
        last_used: Unix time in seconds: the latest of a recorded use, access and change.
            The access time alone would not do: many mounts don't keep it.
        file_count: The files of its revisions, each content once; all files where it has none.
        revisions: Newest first; empty where the store has none.
        damage: What in it leads to nothing.
        files: All that its folder holds, or the file that it is.
        blobs: Those of the files that hold the contents of a repository.
    """

    name: str
    kind: Kind
    store: Store
    path: Path
    bytes: int
    file_count: int
    last_used: float
    revisions: tuple[CachedRevision, ...] = ()
    damage: tuple[Damage, ...] = ()
    files: Files = field(default_factory=dict, repr=False, compare=False)
    blobs: Mapping[str, os.stat_result] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_repo(self) -> bool:
        """Whether `path` is a repository's folder, with or without any revision."""
        return self.store in ("hub", "transformers")

    def latest_revision(self) -> CachedRevision | None:
        """Return the revision that main names, else the newest."""
        named = [revision for revision in self.revisions if "main" in revision.refs]
        return next(iter(named or self.revisions), None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "store": self.store,
            "bytes": self.bytes,
            "files": self.file_count,
            "last_used": self.last_used,
            "revisions": [revision.to_dict() for revision in self.revisions],
            "damage": [
                {"path": os.path.relpath(d.path, self.path), "what": d.what} for d in self.damage
            ],
        }


@dataclass(frozen=True)
class Leftover:
    """An interrupted download or a lock file that something left behind."""

    reason: Literal["incomplete", "lock"]
    name: str
    kind: Kind
    path: Path
    bytes: int
    modified: float

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Return it as JSON, its path relative to the cache folder."""
        return {
            "reason": self.reason,
            "name": self.name,
            "path": self.path.relative_to(root).as_posix(),
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Unrecognised:
    """Something that is never touched, and why."""

    path: Path
    why: str

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Return it as JSON, its path relative to the cache folder."""
        return {"path": self.path.relative_to(root).as_posix(), "why": self.why}


@dataclass(frozen=True)
class Scan:
    """A cache folder at one moment.

    Attributes:
        bytes: What all items and leftovers hold on disk, each file once.
        disk_total: Bytes of the disk or volume that holds the cache; None if it isn't there.
        known_stores: Hub folders with a shared blob store in a layout that is understood.
        uses: When runs last used a revision, by repository folder and commit.
    """

    layout: CacheLayout
    items: tuple[CachedItem, ...]
    leftovers: tuple[Leftover, ...]
    unrecognised: tuple[Unrecognised, ...]
    bytes: int
    disk_total: int | None
    disk_free: int | None
    known_stores: frozenset[Path] = field(repr=False)
    uses: Mapping[tuple[str, str], float] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        root = self.layout.root
        return {
            "cache_dir": str(root),
            "items": [item.to_dict() for item in self.items],
            "leftovers": [leftover.to_dict(root) for leftover in self.leftovers],
            "unrecognised": [entry.to_dict(root) for entry in self.unrecognised],
            "bytes": self.bytes,
            "disk_total": self.disk_total,
            "disk_free": self.disk_free,
        }
