"""What of the cache is in use right now.

A file is in use when a process of this machine has it open or mapped into memory, which covers
locks that are held, or when it is part of a download that was written to a moment ago. A
repository is in use when a run in another container holds a lease on it. The last two hold
across containers, which see each other's files but not their processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.cache.layout import CacheLayout
from ml_experiments.cache.open_files import open_files
from ml_experiments.cache.usage.leases import read_leases

DOWNLOAD_GRACE_S = 900.0


@dataclass(frozen=True)
class InUse:
    """Who uses what.

    Attributes:
        files: Processes of this machine by the paths that they have open or mapped.
        repos: Runs in other containers by the repositories that they use, `models--org--name`.
    """

    files: Mapping[str, str]
    repos: Mapping[str, str]

    def owner_of(self, path: Path) -> str | None:
        """Return who uses a file, or the repository that it belongs to."""
        by_run = (self.repos[part] for part in path.parts if part in self.repos)
        return self.files.get(str(path)) or next(by_run, None)


def find_in_use(layout: CacheLayout) -> InUse:
    """Return who uses what of a cache at this moment."""
    leases = sorted(read_leases(layout).values(), key=lambda lease: lease.run_id)
    repos = {folder: f"run {lease.run_id}" for lease in leases for folder in lease.folders}
    return InUse(open_files(layout.root), repos)


def is_recent(modified: float, now: float) -> bool:
    """Return whether a partial file was written to so recently that a download may go on."""
    return now - modified < DOWNLOAD_GRACE_S
