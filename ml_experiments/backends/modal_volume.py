"""Bringing a run folder from Modal's volume to this machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from ml_experiments.files import open_atomically

_AT_A_TIME = 8
_LEFT_THERE = "checkpoints"  # they may be large
_RECORDS = ("spec.json", "manifest.json")


def fetch_run_folder(volume: modal.Volume, run_id: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Copy what a run has left on the volume into its folder here, but for its checkpoints.

    `result.json` comes last: once it is here, so is all else. The container's spec and manifest
    are returned by file name, as far as they are there; those here know more, so that a run
    whose files could not all be copied can still be found.
    """
    found = _list_files(volume, run_id)
    result = PurePosixPath(run_id, "result.json")
    records = [path for name in _RECORDS if (path := PurePosixPath(run_id, name)) in found]
    rest = [path for path in found if path not in (*records, result)]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        read = threads.map(lambda path: _read_json(volume, path), records)
        list(threads.map(lambda path: _fetch(volume, path, folder), rest))
    if result in found:
        _fetch(volume, result, folder)
    return {path.name: data for path, data in zip(records, read, strict=True)}


def _read_json(volume: modal.Volume, path: PurePosixPath) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(b"".join(volume.read_file(path.as_posix())))
    return data


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
