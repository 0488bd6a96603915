"""Repositories without any revision: what a download leaves that failed before its first file.

A gated model that was asked for without a token is the common case. huggingface_hub's scan
calls most of these damaged, and deletes revisions only, so they are ours to see and to remove.
"""

from __future__ import annotations

import os
from pathlib import Path

from ml_experiments.cache.disk import bytes_held, list_files
from ml_experiments.cache.items import CachedItem, Store
from ml_experiments.cache.layout import Kind

_PARTS = ("blobs", "refs", "trees", ".no_exist")


def read_unfinished_repo(folder: Path, kind: Kind, name: str, store: Store) -> CachedItem | None:
    """Return a repository's folder that holds no revision, or None if it holds anything else."""
    start = f"{folder}{os.sep}"
    files = list_files(str(folder))
    for path, status in files.items():
        part, _, rest = path[len(start) :].partition(os.sep)
        if status is None or part not in _PARTS or not rest:
            return None
    whole = {path: s for path, s in files.items() if not path.endswith(".incomplete")}
    times = [status.st_mtime for status in files.values() if status is not None]
    return CachedItem(
        name=name,
        kind=kind,
        store=store,
        path=folder,
        bytes=bytes_held(whole),
        file_count=0,
        last_used=max(folder.lstat().st_mtime, *times),
        files=tuple(sorted(files)),
    )
