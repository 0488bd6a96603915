"""What a controller on Modal sees to: started, found again and stopped from this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path, PurePosixPath
from typing import Any

from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.modal.detached.containers import (
    SOURCE_PLACE,
    RemoteCall,
    start_on_modal,
)
from ml_experiments.backends.modal.detached.volume_folder import (
    fetch_files,
    list_folders,
    put_file,
    remove_file,
)
from ml_experiments.backends.modal.plan import remote_path
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.backends.modal.remote_runs import claim_id, remove_from_volume
from ml_experiments.backends.modal.request import make_request
from ml_experiments.errors import BackendError, RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.detached.controller import (
    STOP_FILE,
    SWEEPS_FOLDER,
    control_run,
    control_sweep,
    source_here,
)
from ml_experiments.runner.run import discard, open_run_folder
from ml_experiments.runner.sweeps.checking import check_points
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec, reserved_name
from ml_experiments.runner.sweeps.sweep import opened
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.serialization.scratch import ScratchFolder
from ml_experiments.settings import max_cost_per_day, runs_dir, working_dir

# what Modal allows; a call that has lasted for 24 h is ended, and is one of them
MAX_CONTROLLER_RETRIES = 10
_SAMPLERS_NEED = ("optuna>=5,<6", "cmaes>=0.12", "scipy>=1.11")


def can_be_on_modal(spec: SweepSpec) -> bool:
    """Return whether the controller of a sweep can be on Modal.

    Caps are kept on this machine, and the runs that could be used again are here.
    """
    return spec.backend == "modal" and not _is_capped(spec) and not spec.options.get("reuse")


def can_run_be_on_modal(spec: RunSpec) -> bool:
    """Return whether a controller on Modal can make the attempts at a run, and there may be some.

    Caps are kept on this machine.
    """
    return spec.backend == "modal" and spec.may_run_again and not _is_capped(spec)


def _is_capped(spec: SweepSpec | RunSpec) -> bool:
    return spec.max_cost is not None or max_cost_per_day() is not None


def start_run_on_modal(prepared: PreparedRun) -> RunFolder:
    """Start a controller on Modal that makes the attempts at a run; return the run's folder here.

    Raises:
        BackendError: If Modal refuses or can't be reached; nothing was started.
        RunExistsError: If another process has submitted a run of this id.
    """
    place = runs_dir().expanduser().resolve()
    prepared, folder = open_run_folder(prepared, describe_code(working_dir()), place)
    spec, plan, manifest = prepared.spec, prepared.plan, folder.read_manifest()
    redactor = Redactor(prepared.secrets)
    there = source_here(dataclasses.replace(spec, experiment=remote_path(spec.experiment)))
    asked = make_request(there, manifest, prepared.secrets, None).to_dict()
    # first: whatever becomes of this process, the run is found by it
    handed_over = dataclasses.replace(
        manifest,
        client=None,
        modal=dataclasses.replace(plan.place, app_url=""),  # it may be there
        submission=secrets.token_hex(8),
    )
    folder.write_manifest(dataclasses.replace(handed_over, client=manifest.client), redactor)
    with contextlib.ExitStack() as undo, ScratchFolder() as scratch:
        undo.callback(discard, folder)
        source = stage_source(plan.imports, Path(scratch) / "source")
        if prepared.has_own_id:
            claim_id(folder)
            undo.callback(remove_from_volume, [spec.run_id])
        call = start_on_modal(
            control_run,
            {"run": asked, "notify": prepared.notify},
            name=f"controller-{spec.run_id}",
            tags={"controls": spec.run_id},
            source=source.folder,
            pip=plan.pip,
            retries=MAX_CONTROLLER_RETRIES,
        )
        undo.pop_all()
    folder.write_manifest(dataclasses.replace(handed_over, controller=call.call_id), redactor)
    return folder


def start_sweep_on_modal(
    spec: SweepSpec,
    runs_dir: Path,
    *,
    prefetch: bool = False,
    approve: Callable[[Forecast], object] = lambda _forecast: None,
) -> SweepFolder:
    """Check all points here, and start a controller on Modal; return the sweep's folder here.

    Raises:
        Error: If a point is not valid; nothing was started.
        BackendError: If Modal refuses or can't be reached.
    """
    place = runs_dir.expanduser().resolve()
    with reserved_name(place, spec.name), opened(spec) as backend, ScratchFolder() as scratch:
        checked = check_points(spec, backend)
        if checked.forecast is not None:
            approve(checked.forecast)
        if prefetch:
            checked.prefetch(backend, Observer())
        plan = checked.first.plan
        source = stage_source(plan.imports, Path(scratch) / "source")
        secrets = (*secret_values(), *checked.secrets)
        folder = SweepFolder.create(place, spec, Redactor(secrets))
        there = dataclasses.replace(
            spec,
            experiment=remote_path(checked.first.spec.experiment),
            working_dir=SOURCE_PLACE,
        )
        needs_optuna = spec.sampler != "grid" or spec.pruner is not None
        try:
            call = start_on_modal(
                control_sweep,
                _request(there, secrets),
                name=f"ml-experiments-sweep-{spec.sweep_id}",
                tags={"sweep": spec.sweep_id},
                source=source.folder,
                pip=(*plan.pip, *(_SAMPLERS_NEED if needs_optuna else ())),
            )
        except BaseException:
            shutil.rmtree(folder.path)
            raise
        write_json_atomically(folder.remote_file, dataclasses.asdict(call))
        return folder


def _request(spec: SweepSpec, secrets: Iterable[str]) -> dict[str, Any]:
    """Return what a controller gets: of the secrets, only those that the sweep contains."""
    record = dataclasses.asdict(spec)
    written = json.dumps(record, ensure_ascii=False, default=str)
    return {"spec": record, "secrets": [value for value in secrets if value and value in written]}


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


def stop_on_modal(folder: SweepFolder) -> None:
    """Ask the controller on Modal to stop its sweep.

    Raises:
        BackendError: If Modal can't be reached.
    """
    put_file(f"{SWEEPS_FOLDER}/{folder.path.name}/{STOP_FILE}")


def bring_sweep_here(sweep_id: str, runs_dir: Path) -> SweepFolder:
    """Copy what a controller on Modal has left so far: the sweep's folder, and its runs.

    Raises:
        BackendError: If Modal can't be reached.
        RunFolderError: If there is no such sweep, here or there.
    """
    folder = SweepFolder(runs_dir / "sweeps" / sweep_id)
    new: set[str] = set()

    def target(name: PurePosixPath) -> Path | None:
        first = name.parts[0]
        if first.startswith("."):
            return None
        if first == "sweeps":
            is_known = name.name == "sweep.json" and (folder.path / "sweep.json").exists()
            return None if is_known else runs_dir.joinpath(*name.parts)
        if (runs_dir / first / "result.json").exists():
            return None
        if not (runs_dir / first).exists():
            new.add(first)
            return runs_dir.joinpath(f".{first}.sync", *name.parts[1:])
        return runs_dir.joinpath(*name.parts)

    fetch_files(f"{SWEEPS_FOLDER}/{sweep_id}", target)
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


def bring_if_reachable(folder: SweepFolder) -> str | None:
    """Bring a sweep here whose controller is on Modal; return why not, if it can't be reached."""
    try:
        if call_of(folder) is not None:
            bring_sweep_here(folder.path.name, folder.runs_dir)
    except BackendError as e:
        return str(e)
    return None
