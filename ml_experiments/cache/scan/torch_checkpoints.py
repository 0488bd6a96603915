"""The checkpoints that torch.hub keeps: single files in TORCH_HOME/hub/checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ml_experiments.cache.items import CachedItem, Leftover, Unrecognised

_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar", ".zip")
# torch downloads to `<file>.<32 hex digits>.partial` and renames it
_PARTIAL = re.compile(r"(.+)\.[0-9a-f]{32}\.partial")


def scan_checkpoints(
    folder: Path,
) -> tuple[list[CachedItem], list[Leftover], list[Unrecognised]]:
    """Return checkpoints by file name, and downloads that were interrupted."""
    items: list[CachedItem] = []
    leftovers: list[Leftover] = []
    unrecognised: list[Unrecognised] = []
    for entry in os.scandir(folder):
        path = Path(entry.path)
        status = entry.stat(follow_symlinks=False)
        if not entry.is_file(follow_symlinks=False):
            unrecognised.append(Unrecognised(path, "is not a checkpoint file"))
        elif match := _PARTIAL.fullmatch(entry.name):
            leftovers.append(
                Leftover("incomplete", match[1], "torch", path, status.st_size, status.st_mtime)
            )
        elif entry.name.endswith(_SUFFIXES):
            items.append(
                CachedItem(
                    name=entry.name,
                    kind="torch",
                    store="torch",
                    path=path,
                    bytes=status.st_size,
                    file_count=1,
                    last_used=max(status.st_atime, status.st_mtime),
                    files=(entry.path,),
                )
            )
        else:
            unrecognised.append(Unrecognised(path, "has no suffix of a checkpoint"))
    return items, leftovers, unrecognised
