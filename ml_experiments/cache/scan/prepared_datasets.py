"""The cache of the datasets library: tables it prepared.

    org___name/<config>/<version>[/<hash>]/dataset_info.json and *.arrow

A folder that `save_to_disk` wrote has its dataset_info.json higher up: it is the user's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ml_experiments.cache.disk import bytes_held, list_files
from ml_experiments.cache.items import CachedItem

_MARKER = re.compile(r"[^/]+/\d+\.\d+\.\d+(/[^/]+)?/dataset_info\.json")
_DOWNLOADS = "downloads"


def read_dataset(entry: os.DirEntry[str]) -> CachedItem | None:
    """Return a prepared dataset, or None if the folder holds something else."""
    if entry.name == _DOWNLOADS:
        return None
    files = list_files(entry.path)
    if not any(_MARKER.fullmatch(file[len(entry.path) + 1 :]) for file in files):
        return None
    regular = {path: status for path, status in files.items() if status is not None}
    return CachedItem(
        name=entry.name.replace("___", "/"),
        kind="dataset",
        store="datasets",
        path=Path(entry.path),
        bytes=bytes_held(files),
        file_count=len(files),
        last_used=max((max(s.st_atime, s.st_mtime) for s in regular.values()), default=0.0),
        files=files,
        blobs=regular,
    )
