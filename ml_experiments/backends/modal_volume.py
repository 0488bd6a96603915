"""Bringing a run folder from Modal's volume to this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import modal

from ml_experiments.files import open_atomically

_AT_A_TIME = 8
# checkpoints may be large; the spec is the container's, with its own import paths
_LEFT_THERE = {"checkpoints", "spec.json"}


def fetch_run_folder(volume: modal.Volume, run_id: str, folder: Path) -> bool:
    """Copy what a run has left on the volume into its folder here, but for its checkpoints.

    `result.json` comes last: once it is here, so is all else. Returns False when the volume has
    nothing of the run.
    """
    found = _list_files(volume, run_id)
    if not found:
        return False
    last = [path for path in found if path.name == "result.json" and len(path.parts) == 2]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        rest = [path for path in found if path not in last]
        list(threads.map(lambda path: _fetch(volume, path, folder), rest))
    for path in last:
        _fetch(volume, path, folder)
    return True


def _list_files(volume: modal.Volume, run_id: str) -> list[PurePosixPath]:
    try:
        entries = list(volume.iterdir(f"/{run_id}", recursive=True))
    except modal.exception.NotFoundError:
        return []
    paths = [
        PurePosixPath(entry.path.lstrip("/"))
        for entry in entries
        if entry.type == modal.types.FileEntryType.FILE
    ]
    return [path for path in paths if path.parts[1] not in _LEFT_THERE]


def _fetch(volume: modal.Volume, path: PurePosixPath, folder: Path) -> None:
    target = folder.joinpath(*path.parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(target) as file:
        volume.read_file_into_fileobj(path.as_posix(), file)
