"""When runs last used a revision: one small file each, as access times are not reliable.

Volumes and many mounts keep no access times, or coarse ones. Deleting what was "not used for
30 days" by them would delete what runs load every day. One file per revision, so that runs
that end together don't overwrite each other's records.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from ml_experiments.cache.disk import list_files, read_json_object
from ml_experiments.cache.layout import CacheLayout, find_layout, is_without_links
from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.serialization.files import write_json_atomically

_MAX_TIME = 1e11  # in the year 5138: a time beyond it is an error


def record_uses(
    cache_dir: str | Path, used: Iterable[UsedRevision], at: float | None = None
) -> None:
    """Record that a run used these revisions.

    Args:
        cache_dir: The cache folder.
        used: What the run used.
        at: Unix time in seconds; now by default.

    Raises:
        OSError: If the cache can't be written.
    """
    layout = find_layout(cache_dir)
    if layout.uses is None or not is_without_links(layout.uses, layout.root):
        return
    for revision in used:
        folder = layout.uses / revision.folder
        folder.mkdir(parents=True, exist_ok=True)
        data = {"last_used": time.time() if at is None else at}
        write_json_atomically(folder / f"{revision.revision}.json", data)


def read_uses(layout: CacheLayout) -> dict[tuple[str, str], float]:
    """Return the recorded times by repository folder and commit hash."""
    if layout.uses is None or not is_without_links(layout.uses, layout.root):
        return {}
    uses: dict[tuple[str, str], float] = {}
    for file in list_files(str(layout.uses)):
        record = read_json_object(file)
        last_used = None if record is None else record.get("last_used")
        # one that was cut short by a crash, or is none of ours, counts as never used
        if isinstance(last_used, float | int) and 0 <= last_used < _MAX_TIME:
            uses[os.path.basename(os.path.dirname(file)), Path(file).stem] = float(last_used)
    return uses


def use_file(layout: CacheLayout, folder: str, commit: str) -> str:
    """Return the file that holds the recorded use of a revision."""
    return f"{layout.uses}{os.sep}{folder}{os.sep}{commit}.json"
