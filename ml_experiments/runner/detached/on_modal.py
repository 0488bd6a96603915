"""What a controller on Modal sees to: started, found again and stopped from this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ml_experiments.backends.forecast import Forecast, dollars
from ml_experiments.backends.modal.detached.containers import (
    SOURCE_PLACE,
    RemoteCall,
    most_usd_per_s,
    start_on_modal,
)
from ml_experiments.backends.modal.detached.volume_folder import (
    fetch_files,
    list_folders,
    put_file,
    remove_file,
)
from ml_experiments.backends.modal.plan import ContainerPlan, remote_path
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.backends.modal.remote_runs import claim_id, remove_from_volume
from ml_experiments.backends.modal.request import make_request
from ml_experiments.backends.modal.resources import MAX_TIMEOUT_S
from ml_experiments.errors import BackendError, RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.ledger import Ask, Ledger, Reservation
from ml_experiments.runner.budget.reserving import (
    ALL_ATTEMPTS,
    Budget,
    has_spent,
    no_price,
    note_spent,
    read_spent,
    release,
    reserve_asked,
)
from ml_experiments.runner.detached.controller import (
    LEDGER_FILE,
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
from ml_experiments.settings import runs_dir, working_dir

# what Modal allows; a call that has lasted for 24 h is ended, and is one of them
MAX_CONTROLLER_RETRIES = 10
MIN_CONTROLLER_S = 600
_SAMPLERS_NEED = ("optuna>=5,<6", "cmaes>=0.12", "scipy>=1.11")


def can_be_on_modal(spec: SweepSpec) -> bool:
    """Return whether the controller of a sweep can be on Modal.

    The runs that could be used again are on this machine.
    """
    return spec.backend == "modal" and not spec.options.get("reuse")


def can_run_be_on_modal(spec: RunSpec) -> bool:
    """Return whether a controller on Modal can make the attempts at a run, if there may be some."""
    return spec.backend == "modal" and spec.may_run_again


@dataclass(frozen=True)
class Allowance:
    """What is reserved here for a controller on Modal and all that it starts.

    Attributes:
        reservation: In the ledger of this machine; None where no price is known.
        runs_usd: What the runs may cost together; None without a cap.
        own_s: For how many seconds the controller itself may be there; None without a cap.
    """

    reservation: Reservation | None
    runs_usd: float | None = None
    own_s: float | None = None

    def calls(self, retries: int) -> dict[str, int]:
        """Return the timeout of a call of the controller, and how often it is made again at most.

        Args:
            retries: How often it would be without a cap.
        """
        if self.own_s is None:
            return {"timeout_s": MAX_TIMEOUT_S, "retries": retries}
        retries = min(retries, max(0, int(self.own_s / MIN_CONTROLLER_S) - 1))
        return {
            "timeout_s": min(MAX_TIMEOUT_S, int(self.own_s / (1 + retries))),
            "retries": retries,
        }

    def __str__(self) -> str:
        usd = 0.0 if self.reservation is None else self.reservation.usd
        return f"{dollars(usd)} of the cap is reserved until its outcome is here"


def reserve_all(
    name: str, budget: Budget, forecast: Forecast | None, plan: ContainerPlan, runs_dir: Path
) -> Allowance:
    """Reserve what all attempts at a run or all points of a sweep may cost, and their controller.

    The controller takes part in that: by as much of it as its seconds cost if all runs, one after
    the other, use up the rest.

    Args:
        name: The id of the run or the sweep.
        budget: Its cap.
        forecast: What all of it is going to cost.
        plan: The container of the first run.
        runs_dir: Where the outcome is going to be.

    Raises:
        BudgetError: If a cap has no room for it.
    """
    if forecast is None or forecast.worst_case_usd is None or forecast.least_usd is None:
        if budget.is_capped and forecast is not None:
            raise no_price(str(plan.gpu), forecast)
        return Allowance(None)
    own_usd_per_s = most_usd_per_s()
    share = own_usd_per_s / plan.cheapest_usd_per_s
    idle_usd = own_usd_per_s * MIN_CONTROLLER_S
    runs_usd = forecast.all_attempts_usd or forecast.worst_case_usd * forecast.attempts
    runs_usd = max(runs_usd, forecast.least_usd)  # which a cap may be too low for
    ask = Ask(
        name,
        ALL_ATTEMPTS,
        runs_dir,
        f"what runs on {plan.gpu}, controlled on Modal,",
        runs_usd * (1 + share) + idle_usd,
        forecast.least_usd * (1 + share) + idle_usd,
    )
    reserved = reserve_asked([ask], budget)
    if not budget.is_capped:
        return Allowance(reserved[0] if reserved else None)
    [reservation] = reserved
    runs_usd = (reservation.usd - idle_usd) / (1 + share)
    return Allowance(reservation, runs_usd, (reservation.usd - runs_usd) / own_usd_per_s)


def start_run_on_modal(prepared: PreparedRun, say: Callable[[str], object]) -> RunFolder:
    """Start a controller on Modal that makes the attempts at a run; return the run's folder here.

    Args:
        prepared: The run.
        say: Is called with what is reserved for it, if it has a cap.

    Raises:
        BudgetError: If a cap has no room for it.
        BackendError: If Modal refuses or can't be reached; nothing was started.
        RunExistsError: If another process has submitted a run of this id.
    """
    place = runs_dir().expanduser().resolve()
    prepared, folder = open_run_folder(prepared, describe_code(working_dir()), place)
    spec, plan, manifest = prepared.spec, prepared.plan, folder.read_manifest()
    redactor = Redactor(prepared.secrets)
    budget = Budget.of_run(spec.run_id, spec.max_cost)
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
        allowance = reserve_all(spec.run_id, budget, prepared.forecast, plan, place)
        undo.callback(release, allowance.reservation)
        if budget.is_capped:
            say(str(allowance))
        source = stage_source(plan.imports, Path(scratch) / "source")
        if prepared.has_own_id:
            claim_id(folder)
            undo.callback(remove_from_volume, [spec.run_id])
        call = start_on_modal(
            control_run,
            {"run": asked, "notify": prepared.notify, "allowed_usd": allowance.runs_usd},
            name=f"controller-{spec.run_id}",
            tags={"controls": spec.run_id},
            source=source.folder,
            pip=plan.pip,
            **allowance.calls(MAX_CONTROLLER_RETRIES),
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
    say: Callable[[str], object] = lambda _text: None,
) -> SweepFolder:
    """Check all points here, and start a controller on Modal; return the sweep's folder here.

    Args:
        spec: The sweep.
        runs_dir: Where its folder is made.
        prefetch: Whether to download the models that the points name first.
        approve: Is called with what the sweep is going to cost, if anything; it may raise.
        say: Is called with what is reserved for it, if it has a cap.

    Raises:
        BudgetError: If a cap has no room for it.
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
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder.path)
            allowance = reserve_all(spec.sweep_id, spec.budget, checked.forecast, plan, place)
            undo.callback(release, allowance.reservation)
            if spec.budget.is_capped:
                say(str(allowance))
            call = start_on_modal(
                control_sweep,
                {**_request(there, secrets), "allowed_usd": allowance.runs_usd},
                name=f"ml-experiments-sweep-{spec.sweep_id}",
                tags={"sweep": spec.sweep_id},
                source=source.folder,
                pip=(*plan.pip, *(_SAMPLERS_NEED if needs_optuna else ())),
                **allowance.calls(0),
            )
            undo.pop_all()
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


def count_lost(folder: SweepFolder) -> None:
    """Count what a sweep has spent by the ledger of its controller, if that has been lost.

    What is reserved there for points whose outcome never came counts as spent.
    """
    there = Ledger(folder.path / LEDGER_FILE, read_spent)
    if there.file.exists() and not has_spent(folder.path):
        note_spent(folder.path, there.spent_usd(folder.read_spec().budget.scope))


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
