"""The cache of transformers before 4.22: flat files named by hashes, each with a .json.

`<sha256 of URL>.<sha256 of etag>` holds the content, `<the same>.json` the URL and etag,
`<the same>.lock` is empty.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ml_experiments.cache.disk import bytes_held, stat_files
from ml_experiments.cache.items import CachedItem

_CONTENT = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{64})?(\.h5)?")


@dataclass(frozen=True)
class FlatFile:
    """One downloaded file: the model it belongs to and the etag that its content had."""

    path: Path
    model: str
    etag: str


def read_flat_files(folder: Path) -> list[FlatFile]:
    """Return the files of a flat cache whose origin is known; all others are left alone."""
    found = []
    for entry in os.scandir(folder):
        if not _CONTENT.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            origin = json.loads(Path(f"{entry.path}.json").read_text(encoding="utf-8"))
            model, etag = _model_of(str(origin["url"])), str(origin["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not something that transformers wrote
        if model is not None:
            found.append(FlatFile(Path(entry.path), model, etag.strip('"')))
    return found


def scan_flat_files(folder: Path) -> list[CachedItem]:
    """Return the models of a flat cache."""
    by_model: dict[str, list[str]] = {}
    for file in read_flat_files(folder):
        sidecars = (f"{file.path}{suffix}" for suffix in ("", ".json", ".lock"))
        by_model.setdefault(file.model, []).extend(p for p in sidecars if Path(p).is_file())
    items = []
    for model, paths in by_model.items():
        files = stat_files(paths)
        times = [max(s.st_atime, s.st_mtime) for s in files.values() if s is not None]
        items.append(
            CachedItem(
                name=model,
                kind="model",
                store="transformers",
                path=folder,
                bytes=bytes_held(files),
                file_count=len(files),
                last_used=max(times, default=0.0),
                files=tuple(sorted(files)),
            )
        )
    return items


def _model_of(url: str) -> str | None:
    path = unquote(urlsplit(url).path)
    match = re.fullmatch(r"/([\w.-]+(?:/[\w.-]+)?)/resolve/[^/]+/.+", path)
    return match[1] if match else None
