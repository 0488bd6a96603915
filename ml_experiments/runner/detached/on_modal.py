"""Hands runs with several attempts over to a controller on Modal."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path

from ml_experiments.backends.modal.detached.containers import start_on_modal
from ml_experiments.backends.modal.plan import remote_path
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.backends.modal.remote_runs import claim_id, remove_from_volume
from ml_experiments.backends.modal.request import make_request
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import Budget, release
from ml_experiments.runner.detached.allowance import MAX_CONTROLLER_RETRIES, reserve_all
from ml_experiments.runner.detached.controller import control_run, source_here
from ml_experiments.runner.run import discard, open_run_folder
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.serialization.scratch import ScratchFolder
from ml_experiments.settings import runs_dir, working_dir


def can_run_be_on_modal(spec: RunSpec) -> bool:
    """Return whether a controller on Modal can make the attempts at a run, if there may be some."""
    return spec.backend == "modal" and spec.may_run_again


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
    manifest = dataclasses.replace(manifest, submission=secrets.token_hex(8))
    folder.write_manifest(manifest, redactor)
    # before the call: whatever becomes of this process, the run is found by it
    place_there = dataclasses.replace(plan.place, app_url="")
    may_be_there = dataclasses.replace(manifest, modal=place_there)
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
            before_call=lambda: folder.write_manifest(may_be_there, redactor),
            **allowance.calls(MAX_CONTROLLER_RETRIES),
        )
        undo.pop_all()
    handed_over = dataclasses.replace(may_be_there, client=None, controller=call.call_id)
    folder.write_manifest(handed_over, redactor)
    return folder
