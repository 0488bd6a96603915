"""Runs on the volume of run folders: which there are, bringing them here, removing them.

When a run has ended, its container leaves a file `.ended/RUN_ID.STATUS` on the volume, so that one
request tells of all runs which have ended.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import modal

from ml_experiments.backends.modal.errors import LIST_INSTEAD, platform_errors, require_access
from ml_experiments.backends.modal.fetching import RECORDS, Fetched, fetch_run_folder
from ml_experiments.backends.modal.mounts import CONTROLLED_FOLDER, ENDED_FOLDER, runs_volume
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.errors import RunExistsError, RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.folder import RunFolder, make_runs_dir
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.result import RunStatus
from ml_experiments.serialization.files import write_json_atomically

_WITHOUT = "remove the folders of this machine alone with --from local"


def statuses_there() -> dict[str, str]:
    """Return the runs that have ended there, with their statuses, by one request.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    with platform_errors("list the runs that have ended", LIST_INSTEAD):
        try:
            entries = runs_volume().listdir(f"/{ENDED_FOLDER}")
        except modal.exception.NotFoundError:
            return {}
    names = [entry.path.rpartition("/")[2].rpartition(".") for entry in entries]
    return {run_id: status for run_id, _, status in names}


def runs_there() -> set[str]:
    """Return the ids of the runs that have a folder there.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(LIST_INSTEAD)
    with platform_errors("list the runs on the volume", LIST_INSTEAD):
        names = {entry.path.strip("/") for entry in runs_volume().listdir("/")}
    return {name for name in names if not name.startswith(".")}


def bring_here(run_id: str, runs_dir: Path) -> Fetched:
    """Copy a run's folder from the volume, but for its checkpoints.

    A run that has a folder here gets the files that it lacks, or that are not those of the run. A
    copy that was broken off goes on.

    Raises:
        BackendError: If Modal can't be reached.
        RunFolderError: If the volume has nothing of the run.
    """
    folder, draft = runs_dir / run_id, runs_dir / f".{run_id}.sync"
    is_new = not folder.exists()
    make_runs_dir(runs_dir)
    if not is_new and not (folder / "result.json").exists():
        _handle_of(folder).recover()
    place = draft if is_new else folder  # a copy that was broken off is gone on with
    with platform_errors(f"bring run {run_id} here", LIST_INSTEAD):
        fetched = fetch_run_folder(runs_volume(), run_id, place, goes_on=True)
    if is_new:
        if "spec.json" not in fetched.records:
            shutil.rmtree(draft, ignore_errors=True)
            raise RunFolderError(f"the volume of runs has no run {run_id!r}")
        place.mkdir(parents=True, exist_ok=True)  # there may be nothing else yet
        for name, record in fetched.records.items():
            write_json_atomically(place / name, record)
        (place / "log.txt").touch()
    if fetched.has_new_result:
        _handle_of(place).complete(fetched.records)
    if is_new:
        with recorded(runs_dir, run_id, is_listed=True):
            draft.rename(folder)
    return fetched


def _handle_of(path: Path) -> ModalRunHandle:
    folder = RunFolder(path)
    return ModalRunHandle(folder.read_spec(), folder, Observer())


def claim_id(folder: RunFolder) -> None:
    """Put the records of a run on the volume, where no other machine can submit its id then.

    Raises:
        RunExistsError: If another one was faster.
    """
    run_id = folder.path.name
    with platform_errors("record the id of the run"):
        try:
            with runs_volume().batch_upload() as batch:  # which replaces no file
                for name in RECORDS:
                    batch.put_file(folder.path / name, f"/{run_id}/{name}")
        except FileExistsError as e:
            raise RunExistsError(f"another machine has submitted run {run_id}") from e


def put_end(folder: RunFolder) -> None:
    """Put the end of a run on the volume as its controller knows it, for all clients, at once.

    Raises:
        BackendError: If Modal can't be reached.
    """
    run_id, status = folder.path.name, folder.read_result().status
    with (
        platform_errors("store the end of the run"),
        runs_volume().batch_upload(force=True) as batch,
    ):
        for name in (*RECORDS, folder.result_file.name):
            batch.put_file(folder.path / name, f"/{run_id}/{name}")
        batch.put_file(io.BytesIO(b""), f"/{ENDED_FOLDER}/{run_id}.{status}")


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
            folders = [run_id, f"{CONTROLLED_FOLDER}/{run_id}"]
            for path in (*folders, *(f"{ENDED_FOLDER}/{run_id}.{status}" for status in RunStatus)):
                with contextlib.suppress(FileNotFoundError, modal.exception.NotFoundError):
                    volume.remove_file(f"/{path}", recursive=path in folders)


def _size_bytes(volume: modal.Volume, run_id: str) -> int:
    entries = volume.iterdir(f"/{run_id}", recursive=True)
    return sum(entry.size for entry in entries if entry.type is modal.types.FileEntryType.FILE)
