"""Another attempt at a run: it is checked again, and begun in the folder of the run."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Iterable, Sequence

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import reserve
from ml_experiments.runner.reuse.describing import with_fingerprint
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.result import Attempt, ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec


def prepare_recorded(spec: RunSpec, backend: Backend) -> PreparedRun:
    """Check a run that was recorded as `prepare_run` checks a new one.

    Raises:
        Error: If it could not work any more, or its record had secrets taken out.
    """
    for what, data in (("config", spec.config), ("backend options", spec.backend_options)):
        if Redactor.MARK in str(data):
            raise Error(
                f"the {what} of run {spec.run_id} held a secret, which was not recorded; "
                "start a new run with it"
            )
    if spec.backend != backend.name:
        raise Error(f"run {spec.run_id} ran on {spec.backend}, not on {backend.name}")
    if spec.asked_timeout_s is not None:  # how much of it the next attempt gets is decided anew
        spec = dataclasses.replace(spec, timeout_s=spec.asked_timeout_s, asked_timeout_s=None)
    description, template = backend.describe(
        spec.experiment, spec.import_paths, spec.config, spec.seed, is_recorded=True
    )
    prepared = backend.prepare(
        PreparedRun(
            spec,
            (*secret_values(), *description.secrets),
            setup_key=description.setup_key,
            requirements=description.requirements,
            hub_models=description.hub_models,
            template=template,
        )
    )
    return with_fingerprint(prepared, backend)


def reserve_again(
    prepared: PreparedRun,
    folder: RunFolder,
    earlier: Sequence[Attempt],
    backend: Backend,
    *,
    has_begun: bool = False,
) -> PreparedRun:
    """Reserve what another attempt may cost, within the cap of all of them.

    Args:
        prepared: The run.
        folder: Its folder.
        earlier: The attempts that have ended.
        backend: Where the next one executes.
        has_begun: Whether the manifest is the next attempt's already.

    Raises:
        BudgetError: If too little of the cap is left.
    """
    attempt = folder.read_manifest().attempt
    [reserved] = reserve(
        [prepared],
        backend,
        folder.path.parent,
        budget=prepared.budget,
        attempt=attempt if has_begun else attempt + 1,
        # of runs that share a budget, the ledger knows
        spent_usd=0.0 if prepared.budget else sum(each.at_most_usd or 0.0 for each in earlier),
    )
    return reserved


def submit_again(
    prepared: PreparedRun,
    folder: RunFolder,
    outcome: RunResult,
    backend: Backend,
    observer: Observer,
) -> RunHandle:
    """Hand a run over as one that is pending; one that isn't accepted stays as it was."""
    manifest = folder.read_manifest()
    result_before = folder.path / ".result-before.json"
    if folder.result_file.exists():
        shutil.copyfile(folder.result_file, result_before)
    try:
        begun = begin_again(prepared.spec, folder, outcome, prepared.secrets)
        forget_other_source(prepared, begun)
        handle = backend.submit(prepared, begun, observer)
    except BaseException:
        if result_before.exists() and not folder.result_file.exists():
            result_before.rename(folder.result_file)
        folder.write_manifest(manifest, Redactor(prepared.secrets))
        raise
    result_before.unlink(missing_ok=True)
    return handle


def forget_other_source(prepared: PreparedRun, folder: RunFolder) -> None:
    """Forget what a run depends on if this attempt has another source than the one before."""
    manifest = folder.read_manifest()
    before, now = manifest.fingerprint, prepared.fingerprint
    if before is None or now is None:
        return
    if (before.source, before.data, before.config) != (now.source, now.data, now.config):
        folder.forget_fingerprint(Redactor(prepared.secrets))


def begin_again(
    spec: RunSpec, folder: RunFolder, outcome: RunResult, secrets: Iterable[str]
) -> RunFolder:
    """Begin the next attempt at a run, which is pending from now on; return the folder for it.

    Args:
        spec: What to run.
        folder: The run folder.
        outcome: How the attempt before ended.
        secrets: Values that no record may hold.
    """
    redactor = Redactor(secrets)
    manifest = folder.read_manifest()
    if not outcome.status.has_ended:
        left = RunError(
            ErrorKind.INFRASTRUCTURE,
            "AttemptAbandoned",
            "the run was resumed by force while this attempt seemed to go on",
        )
        outcome = dataclasses.replace(outcome, status=RunStatus.ERROR, error=left)
    # where the previous attempt executed says nothing about this one
    pending = dataclasses.replace(
        manifest,
        attempt=manifest.attempt + 1,
        began_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        earlier_attempts=outcome.attempts or manifest.attempts(outcome),
        client=this_process(),
        process=None,
        environment={},
        modal=None,
        job=None,
        controller=None,
    )
    with recorded(folder.path.parent, folder.path.name):
        folder.write_spec(spec, redactor)
        return folder.begin_attempt(pending, redactor)
