"""Sweeps that a controller on Modal runs: found, stopped and brought here from this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath

from ml_experiments.backends.modal.detached.containers import RemoteCall
from ml_experiments.backends.modal.detached.volume_folder import (
    FilesThere,
    fetch_files,
    list_files,
    list_folders,
    put_file,
    put_files,
    read_file,
    remove_file,
)
from ml_experiments.errors import Error, RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.ledger import Ledger
from ml_experiments.runner.budget.reserving import has_spent, note_spent, read_spent
from ml_experiments.runner.detached.controller import LEDGER_FILE, STOP_FILE, SWEEPS_FOLDER
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.records import parse_record
from ml_experiments.serialization.scratch import ScratchFolder


def call_of(folder: SweepFolder) -> RemoteCall | None:
    """Return the call that controls a sweep; None for one that is controlled here.

    Raises:
        RunFolderError: If the record of it is damaged.
    """
    try:
        return RemoteCall(json.loads(folder.remote_file.read_text("utf-8"))["call_id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise RunFolderError(f"{folder.remote_file} is damaged: {e}") from e


def bring_end_here(folder: SweepFolder) -> None:
    """Bring all of a sweep here, if its controller is on Modal; that has to have ended.

    Raises:
        Error: If it goes on.
        BackendError: If Modal can't be reached.
    """
    if folder.remote_file.exists():
        refuse_while_there(folder)
        bring_sweep_here(folder.path.name, folder.runs_dir)
        refuse_while_there(folder)  # its client died before it knew the call
        _count_lost(folder)


def refuse_while_there(folder: SweepFolder) -> None:
    """Make sure that no controller on Modal runs a sweep.

    Raises:
        Error: If one does.
        BackendError: If Modal can't be reached.
    """
    if goes_on_there(folder):
        sweep_id = folder.path.name
        raise Error(
            f"sweep {sweep_id} goes on in a container on Modal; stop it first: ml-experiments "
            f"sweep stop {sweep_id}"
        )


def goes_on_there(folder: SweepFolder) -> bool:
    """Return whether a controller on Modal runs a sweep.

    Raises:
        BackendError: If Modal can't be reached.
    """
    call = call_of(folder)
    return call is not None and call.goes_on()


def _count_lost(folder: SweepFolder) -> None:
    """Count what a sweep has spent by the ledger of its controller, if that has been lost.

    What is reserved there for points whose outcome never came counts as spent.
    """
    if has_spent(folder.path):
        return
    there = Ledger(folder.path / LEDGER_FILE, read_spent)
    # without one, no point was started
    spent_usd = there.file.exists() and there.spent_usd(folder.read_spec().budget.scope)
    note_spent(folder.path, float(spent_usd))


def control_here(folder: SweepFolder) -> None:
    """Let this machine control a sweep from now on, of which everything was brought here.

    Raises:
        BackendError: If Modal can't be reached.
    """
    if folder.remote_file.exists():
        folder.remote_file.unlink()  # first: what is on the volume gets older
        remove_file(f"{SWEEPS_FOLDER}/{folder.path.name}", recursive=True)


def put_sweep_there(folder: SweepFolder, spec: SweepSpec, redactor: Redactor) -> None:
    """Put what a controller has to know of a sweep on the volume, and nothing else of it.

    That is the sweep's folder and the records of its runs, without what the runs have saved.

    Args:
        folder: The sweep's folder here.
        spec: The sweep as it is to be recorded there.
        redactor: Knows what no record may hold.

    Raises:
        BackendError: If Modal can't be reached.
    """
    there, own = f"{SWEEPS_FOLDER}/{spec.sweep_id}", PurePosixPath("sweeps", spec.sweep_id)
    known = {own / file.name: file for file in (folder.journal, folder.reused_file)}
    files = {name: file for name, file in known.items() if file.exists()}
    results: dict[PurePosixPath, Path] = {}
    for run in folder.recorded_runs().values():
        path = run.folder.path
        for file in path.iterdir():
            if file.is_file() and not file.name.startswith("."):
                files[PurePosixPath(path.name, file.name)] = file
        if run.folder.result_file.exists():
            results[PurePosixPath(path.name, "result.json")] = run.folder.result_file
    with ScratchFolder() as scratch:
        SweepFolder(Path(scratch)).write_spec(spec, redactor)
        put_files(there, {**files, own / "sweep.json": Path(scratch, "sweep.json")})
    written = list_files(there)
    for name in results.keys() & written.keys():  # what is there is not newer
        os.utime(results[name], (written[name], written[name]))


def stop_on_modal(folder: SweepFolder) -> None:
    """Ask the controller on Modal to stop its sweep.

    Raises:
        BackendError: If Modal can't be reached.
    """
    put_file(f"{SWEEPS_FOLDER}/{folder.path.name}/{STOP_FILE}")


def bring_sweep_here(sweep_id: str, runs_dir: Path) -> SweepFolder:
    """Copy what a controller on Modal has left so far: the sweep's folder, and its runs.

    A sweep that is controlled on this machine stays as it is.

    Raises:
        BackendError: If Modal can't be reached.
        RunFolderError: If there is no such sweep, here or there.
    """
    folder = SweepFolder(runs_dir / "sweeps" / sweep_id)
    is_known = (folder.path / "sweep.json").exists()
    if is_known and not folder.remote_file.exists():
        return folder
    there = f"{SWEEPS_FOLDER}/{sweep_id}"
    files = {
        name: written_at
        for name, written_at in list_files(there).items()
        if not name.parts[0].startswith(".")
    }
    runs = {name.parts[0] for name in files} - {"sweeps"}
    new = {run_id for run_id in runs if not (runs_dir / run_id).exists()}
    ended = {run_id for run_id in runs if (runs_dir / run_id / "result.json").exists()}
    again = {run_id for run_id in ended if _has_newer(there, runs_dir / run_id, files)}

    def place_of(name: PurePosixPath) -> Path:
        if name.parts[0] in new:
            return runs_dir.joinpath(f".{name.parts[0]}.sync", *name.parts[1:])
        return runs_dir.joinpath(*name.parts)

    wanted = [
        name
        for name in files
        if name.parts[0] not in ended - again and not (is_known and name.name == "sweep.json")
    ]
    with contextlib.ExitStack() as changes:
        for run_id in again:
            changes.enter_context(recorded(runs_dir, run_id))
            if PurePosixPath(run_id, "result.json") not in files:  # it goes on
                (runs_dir / run_id / "result.json").unlink()
        fetch_files(there, files, {name: place_of(name) for name in wanted})
    for run_id in sorted(new):
        draft = runs_dir / f".{run_id}.sync"
        if (draft / "spec.json").exists() and (draft / "manifest.json").exists():
            with recorded(runs_dir, run_id, is_listed=True):
                draft.rename(runs_dir / run_id)
        else:
            shutil.rmtree(draft, ignore_errors=True)
    if not (folder.path / "sweep.json").exists():
        raise RunFolderError(f"there is no sweep {sweep_id} in {runs_dir}, nor on Modal")
    return folder


def _has_newer(there: str, run: Path, files: FilesThere) -> bool:
    """Return whether the volume has a later attempt at a run than the one that has ended here."""
    result = PurePosixPath(run.name, "result.json")
    if result in files:
        return files[result] > (run / "result.json").stat().st_mtime
    content = read_file(f"{there}/{run.name}/manifest.json")
    if content is None:
        return False
    try:
        attempt = parse_record(Manifest, json.loads(content)).attempt
        return attempt > RunFolder(run).read_manifest().attempt
    except (ValueError, RunFolderError):  # a damaged one
        return False


def bring_sweeps_here(runs_dir: Path) -> Iterator[SweepFolder]:
    """Copy what all controllers on Modal have left.

    Raises:
        BackendError: If Modal can't be reached.
    """
    for sweep_id in list_folders(SWEEPS_FOLDER):
        try:
            yield bring_sweep_here(sweep_id, runs_dir)
        except RunFolderError:  # it has only just begun
            continue


def remove_copies_there(run_ids: Set[str], runs_dir: Path) -> None:
    """Remove what controllers on Modal have left of runs, and the sweeps that have no run left.

    Without that, `runs sync` would bring the runs here again. A controller that goes on keeps what
    it has: the container that takes over from it needs that.

    Raises:
        BackendError: If Modal can't be reached, or refuses.
    """
    for sweep_id in list_folders(SWEEPS_FOLDER):
        call = call_of(SweepFolder(runs_dir / "sweeps" / sweep_id))
        if call is None:
            continue
        there = set(list_folders(f"{SWEEPS_FOLDER}/{sweep_id}")) - {"sweeps"}
        if not there & run_ids or call.goes_on():
            continue
        names = there & run_ids if there - run_ids else {""}
        for name in sorted(names):
            remove_file(f"{SWEEPS_FOLDER}/{sweep_id}/{name}".rstrip("/"), recursive=True)
