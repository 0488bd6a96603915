"""A folder of files on the volume of runs: read from this machine, written from a container."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import modal

from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.backends.modal.mounts import RUNS_VOLUME, runs_volume
from ml_experiments.serialization.files import open_atomically


def list_folders(path: str) -> list[str]:
    """Return the names of the folders in a folder there; none where it does not exist.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access()
    with platform_errors("list a folder of the volume of runs"):
        try:
            entries = runs_volume().listdir(f"/{path}")
        except modal.exception.NotFoundError:
            return []
    folder = modal.types.FileEntryType.DIRECTORY
    return sorted(PurePosixPath(e.path).name for e in entries if e.type == folder)


def fetch_files(path: str, target: Callable[[PurePosixPath], Path | None]) -> int:
    """Copy files of a folder there to this machine; return how many were copied.

    Args:
        path: The folder.
        target: Where a file goes, by its path in the folder; None for one that stays there.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access()
    volume, count = runs_volume(), 0
    with platform_errors("copy a folder of the volume of runs"):
        try:
            entries = list(volume.iterdir(f"/{path}", recursive=True))
        except modal.exception.NotFoundError:
            return 0
        found = [e.path for e in entries if e.type == modal.types.FileEntryType.FILE]
        # a run has ended once its result is here, so that comes after all else
        for name in sorted(found, key=lambda name: (name.endswith("/result.json"), name)):
            place = target(PurePosixPath(name.lstrip("/")).relative_to(path))
            if place is None:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with open_atomically(place, durable=False) as file:
                volume.read_file_into_fileobj(name, file)
            count += 1
    return count


def put_empty_file(path: str) -> None:
    """Write an empty file there.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access()
    with (
        platform_errors("write to the volume of runs"),
        runs_volume().batch_upload(force=True) as batch,
    ):
        batch.put_file(io.BytesIO(b""), f"/{path}")


def has_file(path: str) -> bool:
    """Return whether there is a file; asked from a container, whose own view may be older."""
    with platform_errors("look at the volume of runs"):
        try:
            return bool(modal.Volume.from_name(RUNS_VOLUME).listdir(f"/{path}"))
        except modal.exception.NotFoundError:
            return False


def remove_file(path: str, *, recursive: bool = False) -> None:
    """Remove a file there, or a folder with all that is in it, if it is there."""
    gone = (FileNotFoundError, modal.exception.NotFoundError)
    with platform_errors("write to the volume of runs"), contextlib.suppress(*gone):
        modal.Volume.from_name(RUNS_VOLUME).remove_file(f"/{path}", recursive=recursive)


class Mirror:
    """Copies what changes in a folder of a container to a folder on the volume of runs.

    The volume itself is no place for files that are locked, or written again and again.

    Args:
        source: The folder.
        target: The folder on the volume, as it is mounted.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._copied: dict[Path, tuple[int, int]] = {}

    def restore(self) -> None:
        """Copy all that is there back, for a container that goes on with another one's work."""
        if self._target.is_dir():
            shutil.copytree(self._target, self._source, dirs_exist_ok=True)

    def copy(self) -> None:
        """Copy what has changed, and store it."""
        changed = False
        for file in sorted(self._source.rglob("*"), key=lambda file: file.name == "result.json"):
            name = file.relative_to(self._source)
            if any(part.startswith(".") for part in name.parts):
                continue
            try:
                stat = file.stat()
                seen = (stat.st_size, stat.st_mtime_ns)
                if not file.is_file() or self._copied.get(name) == seen:
                    continue
                place = self._target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
            except FileNotFoundError:  # it was replaced meanwhile
                continue
            self._copied[name], changed = seen, True
        if changed:
            modal.Volume.from_name(RUNS_VOLUME).commit()
