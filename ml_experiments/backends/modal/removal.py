"""Removing runs from the volume of run folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import modal

from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.backends.modal.mounts import runs_volume

_WITHOUT = "remove the folders of this machine alone with --from local"


def sizes_on_volume(run_ids: Iterable[str]) -> dict[str, int]:
    """Return what the folders of runs hold there, in bytes; those that aren't there are left out.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(_WITHOUT)
    with platform_errors("list the runs on the volume", _WITHOUT):
        volume = runs_volume()
        there = {entry.path.strip("/") for entry in volume.listdir("/")}
        return {run_id: _size_bytes(volume, run_id) for run_id in run_ids if run_id in there}


def remove_from_volume(run_ids: Iterable[str]) -> None:
    """Remove the folders of runs there; one that is gone already is no error.

    Raises:
        BackendError: If Modal can't be reached, or refuses.
    """
    with platform_errors("remove runs from the volume", _WITHOUT):
        volume = runs_volume()
        for run_id in run_ids:
            with contextlib.suppress(FileNotFoundError, modal.exception.NotFoundError):
                volume.remove_file(f"/{run_id}", recursive=True)


def _size_bytes(volume: modal.Volume, run_id: str) -> int:
    entries = volume.iterdir(f"/{run_id}", recursive=True)
    return sum(entry.size for entry in entries if entry.type is modal.types.FileEntryType.FILE)
