"""The cache of the datasets library: tables it prepared.

    org___name/<config>/<version>[/<hash>]/dataset_info.json and *.arrow

A folder that `save_to_disk` wrote has its dataset_info.json higher up: it is the user's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ml_experiments.cache.disk import bytes_held, list_files
from ml_experiments.cache.items import CachedItem, Leftover, Unrecognised

_MARKER = re.compile(r"[^/]+/\d+\.\d+\.\d+(/[^/]+)?/dataset_info\.json")
_DOWNLOADS = "downloads"


def scan_datasets(
    folder: Path,
) -> tuple[list[CachedItem], list[Leftover], list[Unrecognised]]:
    """Return prepared datasets; what isn't one, `downloads/` included, is left alone."""
    items: list[CachedItem] = []
    unrecognised: list[Unrecognised] = []
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            unrecognised.append(Unrecognised(path, "is not a prepared dataset"))
            continue
        files = list_files(entry.path)
        marked = any(_MARKER.fullmatch(file[len(entry.path) + 1 :]) for file in files)
        if not marked or entry.name == _DOWNLOADS:
            unrecognised.append(Unrecognised(path, "is not a prepared dataset"))
            continue
        times = [max(s.st_atime, s.st_mtime) for s in files.values() if s is not None]
        items.append(
            CachedItem(
                name=entry.name.replace("___", "/"),
                kind="dataset",
                store="datasets",
                path=path,
                bytes=bytes_held(files),
                file_count=len(files),
                last_used=max(times, default=0.0),
                files=tuple(sorted(files)),
            )
        )
    return items, [], unrecognised
