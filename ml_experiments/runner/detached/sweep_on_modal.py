"""Hands sweeps over to a controller on Modal, those that have begun too."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_experiments.backends.base import Backend
from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.modal.detached.containers import (
    SOURCE_PLACE,
    RemoteCall,
    start_on_modal,
)
from ml_experiments.backends.modal.plan import remote_path
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import forget_spent, has_spent, open_ledger, release
from ml_experiments.runner.detached.allowance import MAX_CONTROLLER_RETRIES, reserve_all
from ml_experiments.runner.detached.controller import LEDGER_FILE, control_sweep
from ml_experiments.runner.detached.remote_sweeps import (
    control_here,
    put_sweep_there,
    refuse_while_there,
)
from ml_experiments.runner.sweeps.checking import Checked, check_points
from ml_experiments.runner.sweeps.controller import base_config, prepare_point
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec, reserved_name
from ml_experiments.runner.sweeps.sources import NextPoint
from ml_experiments.runner.sweeps.sweep import opened, taken_up
from ml_experiments.runs.folder import RunFolder
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.serialization.scratch import ScratchFolder

_SAMPLERS_NEED = ("optuna>=5,<6", "cmaes>=0.12", "scipy>=1.11")


def can_be_on_modal(spec: SweepSpec) -> bool:
    """Return whether the controller of a sweep can be on Modal.

    The runs that could be used again are on this machine, and only the points of a grid are known
    here before they start.
    """
    return spec.backend == "modal" and (spec.sampler == "grid" or not spec.options.get("reuse"))


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
        say: Is called with what is reserved for it, if it has a cap, and with what is reused.

    Raises:
        BudgetError: If a cap has no room for it.
        Error: If a point is not valid; nothing was started.
        BackendError: If Modal refuses or can't be reached.
    """
    place = runs_dir.expanduser().resolve()
    with reserved_name(place, spec.name), opened(spec) as backend:
        checked = check_points(spec, backend)
        reused = _earlier_runs(spec, backend, place, ())
        left = (spec.total or 0) - len(reused)
        forecast = _forecast_of(checked, spec, left)
        if forecast is not None:
            approve(forecast)
        if prefetch:
            checked.prefetch(backend, Observer())
        folder = SweepFolder.create(place, spec, Redactor((*secret_values(), *checked.secrets)))
        with contextlib.ExitStack() as undo, folder.locked():
            undo.callback(shutil.rmtree, folder.path)
            _take_earlier_runs(folder, reused, say)
            if left:
                _hand_over(folder, spec, checked, forecast, say, is_known=bool(reused))
            undo.pop_all()
        return folder


def resume_sweep_on_modal(
    folder: SweepFolder,
    *,
    failed_only: bool = False,
    change: Callable[[SweepSpec], SweepSpec] | None = None,
    approve: Callable[[Forecast], object] = lambda _forecast: None,
    say: Callable[[str], object] = lambda _text: None,
) -> bool:
    """Let a controller on Modal run the points of a sweep that have no result yet.

    Returns:
        Whether there are any; if not, none is started.

    Args:
        folder: The sweep, of which everything is here.
        failed_only: Whether to run only those that have failed.
        change: Extends the sweep first.
        approve: Is called with what these points are going to cost, if anything; it may raise.
        say: See `start_sweep_on_modal`.

    Raises:
        Error: See `start_sweep_on_modal`; or another process runs the sweep.
    """
    before = folder.read_spec()
    with taken_up(folder, failed_only=failed_only, change=change) as found:
        spec, left = found.spec, found.progress.to_run
        refuse_while_there(folder)  # it may have been handed over meanwhile
        redactor = Redactor(secret_values())
        if found.checked is None:
            if change is not None:
                folder.write_spec(spec, redactor)
            return False
        reused = []
        if not failed_only:
            reused = _earlier_runs(spec, found.backend, folder.runs_dir, found.recorded)
        left -= len(reused)
        forecast = _forecast_of(found.checked, spec, left)
        if forecast is not None:
            approve(forecast)
        with contextlib.ExitStack() as undo:
            if change is not None:
                undo.callback(folder.write_spec, before, redactor)
                folder.write_spec(spec, redactor)
            _take_earlier_runs(folder, reused, say)
            if left:
                _hand_over(folder, spec, found.checked, forecast, say, failed_only=failed_only)
            undo.pop_all()
        return left > 0


def _forecast_of(checked: Checked, spec: SweepSpec, points: int) -> Forecast | None:
    one: Forecast | None = checked.first.forecast
    return None if one is None or not points else one.for_runs(points, spec.max_cost)


def _earlier_runs(
    spec: SweepSpec, backend: Backend, runs_dir: Path, known: Collection[str]
) -> list[tuple[NextPoint, RunFolder]]:
    """Return the earlier runs that can be taken for points of a grid, if they are to be.

    Args:
        spec: The sweep.
        backend: Where it runs.
        runs_dir: Where the earlier runs are.
        known: The points that have a run.
    """
    if not spec.options.get("reuse"):
        return []
    from ml_experiments.runner.reuse.finding import find_same  # brings SQLite along

    base, found = base_config(spec), []
    for number, overrides in enumerate(spec.space.points()):
        point = NextPoint(number, overrides)
        if point.run_key not in known:
            same = find_same(prepare_point(spec, base, point, backend), backend, runs_dir)
            found += [] if same is None else [(point, same)]
    return found


def _take_earlier_runs(
    folder: SweepFolder,
    found: Sequence[tuple[NextPoint, RunFolder]],
    say: Callable[[str], object],
) -> None:
    for point, run in found:
        folder.record_reused(point.run_key, point.overrides, run)
    if found:
        count = "1 point" if len(found) == 1 else f"{len(found):,} points"
        say(f"{count} reused, for $0: earlier runs depend on the same")


def _hand_over(
    folder: SweepFolder,
    spec: SweepSpec,
    checked: Checked,
    forecast: Forecast | None,
    say: Callable[[str], object],
    *,
    failed_only: bool = False,
    is_known: bool = True,
) -> None:
    """Start a controller for the points of a sweep that are left.

    Args:
        folder: The sweep.
        spec: What was asked for.
        checked: What is known of these points.
        forecast: What they are going to cost.
        say: Is called with what is reserved for them.
        failed_only: Whether they are only those that have failed.
        is_known: Whether there are runs of it.
    """
    plan, first = checked.first.plan, checked.first.spec
    # by the name that its other runs have, unless that is a file here
    experiment = first.experiment
    experiment = remote_path(experiment) if ".py:" in experiment else experiment
    secrets = (*secret_values(), *checked.secrets)
    there = dataclasses.replace(
        spec,
        experiment=experiment,
        working_dir=SOURCE_PLACE,
        backend_options=first.backend_options,  # a requirements file is on this machine
        options={name: value for name, value in spec.options.items() if name != "reuse"},
    )
    needs_optuna = spec.sampler != "grid" or spec.pruner is not None
    with contextlib.ExitStack() as undo, ScratchFolder() as scratch:
        source = stage_source(plan.imports, Path(scratch) / "source")
        if is_known:
            _forget_spent(folder, spec)
            control_here(folder)
        allowance = reserve_all(spec.sweep_id, spec.budget, forecast, plan, folder.runs_dir)
        undo.callback(release, allowance.reservation)
        undo.callback(folder.remote_file.unlink, missing_ok=True)
        if spec.budget.is_capped:
            say(str(allowance))
        if is_known:
            put_sweep_there(folder, there, Redactor(secrets))
        call = start_on_modal(
            control_sweep,
            {
                **_request(there, secrets),
                "allowed_usd": allowance.runs_usd,
                "failed_only": failed_only,
                "began_at": datetime.datetime.now(datetime.UTC).isoformat(),
            },
            name=f"ml-experiments-sweep-{spec.sweep_id}",
            tags={"sweep": spec.sweep_id},
            source=source.folder,
            pip=(*plan.pip, *(_SAMPLERS_NEED if needs_optuna else ())),
            before_call=lambda: _note_call(folder, RemoteCall("")),
            # a cap pays for one call
            **allowance.calls(MAX_CONTROLLER_RETRIES if allowance.own_s is None else 0),
        )
        undo.pop_all()
    _note_call(folder, call)


def _note_call(folder: SweepFolder, call: RemoteCall) -> None:
    write_json_atomically(folder.remote_file, dataclasses.asdict(call))


def _forget_spent(folder: SweepFolder, spec: SweepSpec) -> None:
    """Count what an earlier controller has spent, and forget the record, for there is another."""
    if has_spent(folder.path):
        open_ledger().spent_usd(spec.budget.scope)
        forget_spent(folder.path)
    (folder.path / LEDGER_FILE).unlink(missing_ok=True)


def _request(spec: SweepSpec, secrets: Iterable[str]) -> dict[str, Any]:
    """Return what a controller gets: of the secrets, only those that the sweep contains."""
    record = dataclasses.asdict(spec)
    written = json.dumps(record, ensure_ascii=False, default=str)
    return {"spec": record, "secrets": [value for value in secrets if value and value in written]}
