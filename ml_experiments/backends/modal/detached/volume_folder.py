"""A folder of files on the volume of runs: read from this machine, written from a container."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import modal

from ml_experiments.backends.modal.errors import LIST_INSTEAD, platform_errors, require_access
from ml_experiments.backends.modal.mounts import (
    AT_ONCE,
    CANCEL_FILE,
    CONTROLLED_FOLDER,
    RUNS_VOLUME,
    runs_volume,
)
from ml_experiments.serialization.files import open_atomically


def list_folders(path: str) -> list[str]:
    """Return the names of the folders in a folder there; none where it does not exist.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    with platform_errors("list a folder of the volume of runs"):
        try:
            entries = runs_volume().listdir(f"/{path}")
        except modal.exception.NotFoundError:
            return []
    folder = modal.types.FileEntryType.DIRECTORY
    return sorted(PurePosixPath(e.path).name for e in entries if e.type == folder)


FilesThere = Mapping[PurePosixPath, int]


def list_files(path: str) -> FilesThere:
    """Return the files of a folder there by their path in it, with when they were written.

    That is Unix time, in seconds. Without the folder, there are none.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    with platform_errors("list a folder of the volume of runs"):
        try:
            entries = list(runs_volume().iterdir(f"/{path}", recursive=True))
        except modal.exception.NotFoundError:
            return {}
    return {
        PurePosixPath(entry.path.lstrip("/")).relative_to(path): entry.mtime
        for entry in entries
        if entry.type == modal.types.FileEntryType.FILE
    }


def fetch_files(path: str, files: FilesThere, places: Mapping[PurePosixPath, Path]) -> None:
    """Copy files of a folder there to this machine, with when they were written.

    Args:
        path: The folder.
        files: What is in it.
        places: Where each file goes that is to come.

    Raises:
        BackendError: If Modal can't be reached.
    """
    volume = runs_volume()
    with platform_errors("copy a folder of the volume of runs"):
        # a run has ended once its result is here, so that comes after all else
        for name in sorted(places, key=lambda name: (name.name == "result.json", name)):
            place = places[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            with open_atomically(place, durable=False) as file:
                volume.read_file_into_fileobj(f"{path}/{name}", file)
            os.utime(place, (files[name], files[name]))


def put_file(path: str, content: bytes = b"") -> None:
    """Write a file there.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    with (
        platform_errors("write to the volume of runs"),
        runs_volume().batch_upload(force=True) as batch,
    ):
        batch.put_file(io.BytesIO(content), f"/{path}")


def put_files(path: str, files: Mapping[PurePosixPath, Path]) -> None:
    """Replace a folder there by files of this machine.

    Args:
        path: The folder.
        files: The files, by their path in it.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    remove_file(path, recursive=True)
    with (
        platform_errors("write to the volume of runs"),
        runs_volume().batch_upload(force=True) as batch,
    ):
        for name, file in files.items():
            batch.put_file(file, f"/{path}/{name}")


def ask_to_cancel(run_id: str, *, at_once: bool) -> None:
    """Ask the controller of a run to cancel it.

    Raises:
        BackendError: If Modal can't be reached.
    """
    put_file(f"{CONTROLLED_FOLDER}/{run_id}/{CANCEL_FILE}", AT_ONCE if at_once else b"")


def read_file(path: str) -> bytes | None:
    """Return a file there, None without it; for a container, whose own view may be older."""
    with platform_errors("look at the volume of runs"):
        try:
            return b"".join(modal.Volume.from_name(RUNS_VOLUME).read_file(path))
        except (FileNotFoundError, modal.exception.NotFoundError):
            return None


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
        left_out: Names of files and folders that are not copied.
    """

    def __init__(self, source: Path, target: Path, left_out: Sequence[str] = ()) -> None:
        self.source, self._target, self._left_out = source, target, left_out
        self._copied: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def restore(self) -> None:
        """Copy all that is there back, for a container that goes on with another one's work."""
        if self._target.is_dir():
            shutil.copytree(self._target, self.source, dirs_exist_ok=True)
            copies = [file for file in self.source.rglob("*") if file.is_file()]
            self._copied = {file.relative_to(self.source): _state_of(file) for file in copies}

    def copy(self, only: Sequence[Path] = ()) -> None:
        """Copy what has changed, remove what is gone, and store that; any thread may call it.

        Args:
            only: The folders in it to look at; all of them without any.
        """
        with self._lock:
            self._copy(only)

    def _copy(self, only: Sequence[Path]) -> None:
        copied = [n for n in self._copied if not only or any(n.is_relative_to(o) for o in only)]
        gone = [name for name in copied if not (self.source / name).exists()]
        # first: a result that is gone was that of an earlier attempt
        for name in gone:
            (self._target / name).unlink(missing_ok=True)
            del self._copied[name]
        changed = bool(gone)
        found = [file for name in only or ("",) for file in (self.source / name).rglob("*")]
        for file in sorted(found, key=lambda file: file.name == "result.json"):
            name = file.relative_to(self.source)
            if any(part.startswith(".") or part in self._left_out for part in name.parts):
                continue
            try:
                seen = _state_of(file)
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


def _state_of(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
