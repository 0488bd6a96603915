"""Bringing a run folder from Modal's volume to this machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from ml_experiments.runs.manifest import Manifest
from ml_experiments.serialization.files import open_atomically

_AT_A_TIME = 32
_LEFT_THERE = "checkpoints"  # they may be large
_RECORDS = ("spec.json", "manifest.json")


@dataclass(frozen=True)
class Fetched:
    """What came of fetching a run folder.

    Attributes:
        records: The container's spec and manifest by file name, as far as they are there. They
            are not copied: those here know more, by which the run is found again.
        left_behind: Files that can't be read from the volume, such as a link that leads nowhere
            or a name that isn't UTF-8.
    """

    records: dict[str, dict[str, Any]]
    left_behind: tuple[str, ...]


def read_ref_there(volume: modal.Volume, repo: str, ref: str) -> str | None:
    """Return the revision that a branch or tag of a cached repository leads to; None without one.

    Args:
        volume: The volume of the cache.
        repo: The folder of the repository, such as `models--org--name`.
        ref: The branch or tag.
    """
    try:
        content = b"".join(volume.read_file(f"huggingface/hub/{repo}/refs/{ref}"))
    except (FileNotFoundError, modal.exception.NotFoundError):
        return None
    return content.decode("ascii", "replace").strip() or None


def has_begun_there(volume: modal.Volume, run_id: str, manifest: Manifest) -> bool:
    """Return whether the volume has something of this very submission of a run."""
    try:
        record = _read_json(volume, PurePosixPath(run_id, "manifest.json"))
    except (FileNotFoundError, modal.exception.NotFoundError, ValueError):
        return False
    return record.get("submission") == manifest.submission


def has_result_there(volume: modal.Volume, run_id: str) -> bool:
    """Return whether a run has ended that has begun there."""
    return PurePosixPath(run_id, "result.json") in _list_files(volume, run_id)


def checkpoint_times(volume: modal.Volume, run_id: str) -> list[int]:
    """Return the Unix time at which each checkpoint of a run was written."""
    try:
        entries = list(volume.iterdir(f"/{run_id}/{_LEFT_THERE}", recursive=True))
    except modal.exception.NotFoundError:
        return []
    return [entry.mtime for entry in entries if entry.type == modal.types.FileEntryType.FILE]


def fetch_run_folder(
    volume: modal.Volume, run_id: str, folder: Path, *, goes_on: bool = False
) -> Fetched:
    """Copy what a run has left on the volume into its folder here, but for its checkpoints.

    `result.json` comes last: once it is here, so is all else. What a link leads to comes as a file.

    Args:
        volume: The volume.
        run_id: The run.
        folder: Its folder here.
        goes_on: Whether to leave out files that are here with the size that they have there.
    """
    found = _list_files(volume, run_id)
    result = PurePosixPath(run_id, "result.json")
    records = [path for name in _RECORDS if (path := PurePosixPath(run_id, name)) in found]
    rest = [
        path
        for path, size in found.items()
        if path not in (*records, result) and not (goes_on and _size_here(path, folder) == size)
    ]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        read = threads.map(lambda path: _read_json(volume, path), records)
        fetched = list(threads.map(lambda path: _fetch(volume, path, folder), rest))
    left = [str(path) for path, is_here in zip(rest, fetched, strict=True) if not is_here]
    if result in found:
        _fetch(volume, result, folder, durable=True)
    return Fetched({path.name: data for path, data in zip(records, read, strict=True)}, tuple(left))


def _read_json(volume: modal.Volume, path: PurePosixPath) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(b"".join(volume.read_file(path.as_posix())))
    return data


def _size_here(path: PurePosixPath, folder: Path) -> int | None:
    try:
        return folder.joinpath(*path.parts[1:]).stat().st_size
    except OSError:
        return None


def _list_files(volume: modal.Volume, run_id: str) -> dict[PurePosixPath, int]:
    """Return the files of a run there, with their sizes in bytes."""
    try:
        entries = list(volume.iterdir(f"/{run_id}", recursive=True))
    except modal.exception.NotFoundError:
        return {}
    kinds = (modal.types.FileEntryType.FILE, modal.types.FileEntryType.SYMLINK)
    sizes = {PurePosixPath(e.path.lstrip("/")): e.size for e in entries if e.type in kinds}
    return {path: size for path, size in sizes.items() if path.parts[1] != _LEFT_THERE}


def _fetch(
    volume: modal.Volume, path: PurePosixPath, folder: Path, *, durable: bool = False
) -> bool:
    """Copy a file; False if the volume can't find it under the name that it gave."""
    target = folder.joinpath(*path.parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_atomically(target, durable=durable) as file:
            volume.read_file_into_fileobj(path.as_posix(), file)
    except (FileNotFoundError, IsADirectoryError, modal.exception.NotFoundError):
        return False
    return True
