"""What the cache saved: counted from what runs recorded in their manifests."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import CacheError


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
        text = os.fspath(runs_dir)
        raise CacheError(f"there is no folder of runs at {text!r}; give one with --runs-dir")
    runs = 0
    unreadable: list[str] = []
    uses: dict[tuple[str, str, str], list[tuple[bool, int]]] = {}
    for manifest in sorted(folder.glob("*/manifest.json")):
        try:
            cached = json.loads(manifest.read_bytes()).get("cached_models")
            for use in cached or ():
                key = (str(use["kind"]), str(use["repo_id"]), str(use["revision"]))
                uses.setdefault(key, []).append((bool(use["hit"]), int(use["bytes"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            unreadable.append(manifest.parent.name)
            continue
        runs += cached is not None
    revisions = [_count(key, found) for key, found in uses.items()]
    revisions.sort(key=lambda r: (-r.bytes_saved, r.kind, r.repo_id, r.revision))
    return CacheStats(runs, tuple(unreadable), tuple(revisions))


def _count(key: tuple[str, str, str], uses: list[tuple[bool, int]]) -> RevisionStats:
    kind, repo_id, revision = key
    saved = [size for hit, size in uses if hit]
    downloaded = [size for hit, size in uses if not hit]
    return RevisionStats(
        repo_id, kind, revision, len(saved), len(downloaded), sum(saved), sum(downloaded)
    )
