"""What the cache saved: counted from what runs recorded in their manifests."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.errors import CacheError, RunFolderError
from ml_experiments.runs.records import parse_record, read_json_object

# more than any disk holds; a larger number is an error, and could not be printed
_MAX_BYTES = 2**60


@dataclass(frozen=True)
class RevisionStats:
    """How often runs used one revision, and what being cached saved."""

    repo_id: str
    kind: str
    revision: str
    hits: int
    downloads: int
    bytes_saved: int
    bytes_downloaded: int


@dataclass(frozen=True)
class CacheStats:
    """What runs used, by revision; those that saved most first.

    Attributes:
        runs: Runs that recorded what they used.
        unreadable: Manifests that can't be read.
    """

    runs: int
    unreadable: tuple[str, ...]
    revisions: tuple[RevisionStats, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, with totals."""
        return {
            "runs": self.runs,
            "hits": sum(r.hits for r in self.revisions),
            "downloads": sum(r.downloads for r in self.revisions),
            "bytes_saved": sum(r.bytes_saved for r in self.revisions),
            "bytes_downloaded": sum(r.bytes_downloaded for r in self.revisions),
            "revisions": [asdict(revision) for revision in self.revisions],
            "unreadable": list(self.unreadable),
        }


def read_stats(runs_dir: str | Path) -> CacheStats:
    """Count downloads and hits over all runs of a folder.

    Raises:
        CacheError: If the folder isn't there.
    """
    folder = Path(runs_dir).expanduser()
    if not os.fspath(runs_dir).strip() or not folder.is_dir():
        given = os.fspath(runs_dir)
        raise CacheError(f"there is no folder of runs at {given!r}; give one with --runs-dir")
    runs = 0
    unreadable: list[str] = []
    uses: dict[tuple[str, str, str], list[UsedRevision]] = {}
    for manifest in _manifests(folder):
        try:
            used = _read_uses(manifest)
        except (RunFolderError, ValueError):
            unreadable.append(manifest.parent.name)
            continue
        runs += used is not None
        for use in used or ():
            uses.setdefault((use.kind, use.repo_id, use.revision), []).append(use)
    revisions = [_count(*key, found) for key, found in uses.items()]
    revisions.sort(key=lambda r: (-r.bytes_saved, r.kind, r.repo_id, r.revision))
    return CacheStats(runs, tuple(unreadable), tuple(revisions))


def _manifests(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path, "manifest.json") for entry in entries]
    except OSError as e:
        raise CacheError(f"the folder of runs {folder} can't be read: {e.strerror}") from e
    return [manifest for manifest in sorted(found) if os.path.lexists(manifest)]


def _read_uses(manifest: Path) -> list[UsedRevision] | None:
    """Return what a run recorded, or None if it recorded nothing.

    Raises:
        RunFolderError: If the manifest is no JSON object.
        ValueError: If what it holds under `cached_models` is something else.
    """
    cached = read_json_object(manifest).get("cached_models")
    if cached is None:
        return None
    if not isinstance(cached, list) or not all(isinstance(use, dict) for use in cached):
        raise ValueError("cached_models is no list of objects")
    uses = [parse_record(UsedRevision, use) for use in cached]
    if not all(0 <= use.bytes <= _MAX_BYTES for use in uses):
        raise ValueError("bytes is no size")
    return uses


def _count(kind: str, repo_id: str, revision: str, uses: list[UsedRevision]) -> RevisionStats:
    saved = [use.bytes for use in uses if use.hit]
    downloaded = [use.bytes for use in uses if not use.hit]
    return RevisionStats(
        repo_id, kind, revision, len(saved), len(downloaded), sum(saved), sum(downloaded)
    )
