"""Bringing a run folder from Modal's volume to this machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import modal

from ml_experiments.files import open_atomically
from ml_experiments.runs import RunSpec

_AT_A_TIME = 8
_LEFT_THERE = "checkpoints"  # they may be large


def fetch_run_folder(volume: modal.Volume, run_id: str, folder: Path) -> RunSpec | None:
    """Copy what a run has left on the volume into its folder here, but for its checkpoints.

    `result.json` comes last: once it is here, so is all else. The spec stays there too, for it
    has the container's import paths; it is returned, or None when the volume does not have it.
    """
    found = _list_files(volume, run_id)
    if not found:
        return None
    spec, result = PurePosixPath(run_id, "spec.json"), PurePosixPath(run_id, "result.json")
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        recorded = threads.submit(_read_spec, volume, spec) if spec in found else None
        rest = [path for path in found if path not in (spec, result)]
        list(threads.map(lambda path: _fetch(volume, path, folder), rest))
    if result in found:
        _fetch(volume, result, folder)
    return recorded.result() if recorded else None


def _read_spec(volume: modal.Volume, path: PurePosixPath) -> RunSpec:
    return RunSpec.from_dict(json.loads(b"".join(volume.read_file(path.as_posix()))))


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
    return [path for path in paths if path.parts[1] != _LEFT_THERE]


def _fetch(volume: modal.Volume, path: PurePosixPath, folder: Path) -> None:
    target = folder.joinpath(*path.parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(target) as file:
        volume.read_file_into_fileobj(path.as_posix(), file)
