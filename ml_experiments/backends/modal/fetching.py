"""Bringing a run folder from Modal's volume to this machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.records import parse_record
from ml_experiments.serialization.checksums import FILE_NAME as CHECKSUMS
from ml_experiments.serialization.checksums import hash_file, read_checksums
from ml_experiments.serialization.files import open_atomically

_AT_A_TIME = 32
_LEFT_THERE = "checkpoints"  # they may be large
RECORDS = ("spec.json", "manifest.json")


@dataclass(frozen=True)
class Fetched:
    """What came of fetching a run folder.

    Attributes:
        records: The container's spec and manifest by file name, as far as they are there. They
            are not copied: those here know more, by which the run is found again.
        left_behind: Files that can't be read from the volume, such as a link that leads nowhere
            or a name that isn't UTF-8.
        damaged_here: Files that were here, but not as the run had left them; they were fetched.
        damaged_there: Files that are not as the run had left them on the volume either.
        has_new_result: Whether the result came, and the client has to add what it knows.
    """

    records: dict[str, dict[str, Any]]
    left_behind: tuple[str, ...]
    damaged_here: tuple[str, ...] = ()
    damaged_there: tuple[str, ...] = ()
    has_new_result: bool = False


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


def read_manifest_there(
    volume: modal.Volume, run_id: str, manifest: Manifest, controller: str | None = None
) -> Manifest | None:
    """Return what the volume has of this very submission of a run, if anything.

    It has no call yet where a client has claimed the id and the run has not begun. A controller
    submits each attempt for itself; see `fetch_run_folder`.
    """
    try:
        record = _read_json(volume, PurePosixPath(run_id, "manifest.json"))
        theirs = parse_record(Manifest, record)
    except (FileNotFoundError, modal.exception.NotFoundError, ValueError):
        return None
    is_same = theirs.submission == manifest.submission
    return theirs if is_same or not _is_a_clients(record, controller) else None


def has_result_there(
    volume: modal.Volume, folder: RunFolder, controller: str | None = None
) -> bool:
    """Return whether a run has ended that has begun there; see `fetch_run_folder`."""
    run_id = folder.path.name
    result, manifest = (PurePosixPath(run_id, name) for name in ("result.json", "manifest.json"))
    found = _list_files(volume, run_id)
    if result not in found or manifest not in found:
        return result in found
    record = _read_json(volume, manifest)
    return _is_a_clients(record, controller) and not _is_superseded(record, folder.path)


def _is_superseded(manifest: dict[str, Any], folder: Path) -> bool:
    """Return whether what the volume has is of an earlier attempt than the one that is known here.

    That is so until the container of a resumed run has written something.
    """
    try:
        known = RunFolder(folder).read_manifest()
    except RunFolderError:  # not here yet
        return False
    return isinstance(there := manifest.get("attempt"), int) and there < known.attempt


def _is_a_clients(manifest: dict[str, Any], controller: str | None) -> bool:
    """Return whether the result of an attempt is for a client.

    If not, it is for the controller of the run, which may make another attempt.

    Args:
        manifest: That on the volume.
        controller: The call that the client is, if it is a controller itself.
    """
    return manifest.get("controller") in (None, controller)


def checkpoint_files(volume: modal.Volume, run_id: str) -> dict[str, float]:
    """Return the files among a run's checkpoints, with the Unix time at which each was written."""
    try:
        entries = list(volume.iterdir(f"/{run_id}/{_LEFT_THERE}", recursive=True))
    except modal.exception.NotFoundError:
        return {}
    return {
        entry.path.strip("/").partition(f"/{_LEFT_THERE}/")[2]: entry.mtime
        for entry in entries
        if entry.type == modal.types.FileEntryType.FILE
    }


def fetch_run_folder(
    volume: modal.Volume,
    run_id: str,
    folder: Path,
    *,
    goes_on: bool = False,
    controller: str | None = None,
    has_result: bool = False,
) -> Fetched:
    """Copy what a run has left on the volume into its folder here, but for its checkpoints.

    `result.json` comes last: once it is here, so is all else. What a link leads to comes as a file.
    Nothing comes of an earlier attempt than the one that is known here.

    Args:
        volume: The volume.
        run_id: The run.
        folder: Its folder here.
        goes_on: Whether to leave out files that are here already: with the size that they have
            there, and for artifacts with the hash that the run has recorded; a result that is here
            has its costs.
        controller: The call that this is done in, which takes the results of single attempts.
        has_result: Whether the result has come already, as what the call returned.
    """
    found = _list_files(volume, run_id)
    result, sums = (PurePosixPath(run_id, name) for name in ("result.json", CHECKSUMS))
    records = [path for name in RECORDS if (path := PurePosixPath(run_id, name)) in found]
    rest = [path for path in found if path not in (*records, result, sums)]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        jsons = threads.map(lambda path: _read_json(volume, path), records)
        read = {path.name: record for path, record in zip(records, jsons, strict=True)}
        if _is_superseded(read.get("manifest.json", {}), folder):
            return Fetched({}, left_behind=())
        if sums in found:
            _fetch(volume, sums, folder, found[sums])
        hashes = read_checksums(folder) if goes_on else {}

        def is_damaged(path: PurePosixPath) -> bool:
            expected = hashes.get(_name_of(path))
            return expected is not None and hash_file(folder / _name_of(path)) != expected

        known = [p for p in rest if goes_on and _size_here(p, folder) == found[p]]
        damaged = {p for p, bad in zip(known, threads.map(is_damaged, known), strict=True) if bad}
        rest = [path for path in rest if path in damaged or path not in known]
        fetched = list(threads.map(lambda path: _fetch(volume, path, folder, found[path]), rest))
        here = [path for path, is_here in zip(rest, fetched, strict=True) if is_here]
        still = [p for p, bad in zip(here, threads.map(is_damaged, here), strict=True) if bad]
    manifest = read.get("manifest.json", {})
    has_new_result = (
        result in found
        and not has_result
        and _is_a_clients(manifest, controller)
        and not (goes_on and _has_result_of(folder, manifest.get("submission")))
    )
    if has_new_result:
        _fetch(volume, result, folder, found[result], durable=True)
    return Fetched(
        read,
        left_behind=tuple(str(path) for path in rest if path not in here),
        damaged_here=tuple(_name_of(path) for path in rest if path in damaged),
        damaged_there=tuple(map(_name_of, still)),
        has_new_result=has_new_result,
    )


def _has_result_of(folder: Path, submission: str | None) -> bool:
    """Return whether the result that is here is that of a submission, and no earlier one's."""
    try:
        known = RunFolder(folder)
        return known.result_file.exists() and known.read_manifest().submission == submission
    except RunFolderError:
        return False


def _name_of(path: PurePosixPath) -> str:
    """Return the path of a file on the volume relative to the folder of its run."""
    return path.relative_to(path.parts[0]).as_posix()


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
    file, link = modal.types.FileEntryType.FILE, modal.types.FileEntryType.SYMLINK
    sizes = {  # that of a link says nothing of what it leads to
        PurePosixPath(e.path.lstrip("/")): e.size if e.type == file else max(1, e.size)
        for e in entries
        if e.type in (file, link)
    }
    return {path: size for path, size in sizes.items() if path.parts[1] != _LEFT_THERE}


def _fetch(
    volume: modal.Volume,
    path: PurePosixPath,
    folder: Path,
    size_bytes: int,
    *,
    durable: bool = False,
) -> bool:
    """Copy a file; False if the volume can't find it under the name that it gave."""
    target = folder.joinpath(*path.parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_atomically(target, durable=durable) as file:
            if size_bytes:
                volume.read_file_into_fileobj(path.as_posix(), file)
    except (FileNotFoundError, IsADirectoryError, modal.exception.NotFoundError):
        return False
    return True
