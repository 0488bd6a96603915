"""Takes up runs that are there: again from their checkpoints, or as they go on elsewhere."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.experiment.by_value import FILE_NAME
from ml_experiments.experiment.reference import parse_experiment_path
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import (
    Budget,
    describe_limit,
    release,
    reserve,
    settle_at_end,
)
from ml_experiments.runner.observers import guarded
from ml_experiments.runner.run import keep_alive
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec


def resume_run(
    folder: RunFolder,
    *,
    backend: Backend,
    observer: Observer | None = None,
    force: bool = False,
    max_cost: float | None = None,
    budget: Budget | None = None,
    approve: Callable[[PreparedRun], object] = lambda _run: None,
) -> RunHandle:
    """Run a run again that did not succeed, in its own folder, from its checkpoints.

    Everything that can be checked is checked first; until then, nothing of the run is changed.

    Args:
        folder: The run folder. Where the project has been moved, or the folder brought from
            another machine, the experiment is looked for beside it, and in the current folder.
        backend: The backend that it ran on.
        observer: Receives live events.
        force: Resume it even if it seems to go on.
        max_cost: Replaces the cap that it has, in US dollars; what it has cost so far counts.
        budget: What it shares with other runs, instead of a cap of its own.
        approve: Is called with the prepared run before anything is submitted; it may raise.

    Raises:
        Error: If it succeeded, is still going on, or its record had secrets taken out.
    """
    folder = RunFolder(folder.path.expanduser().resolve())
    lock = RunLock.take(folder)
    try:
        backend.recover(folder, guarded(observer))
        outcome, spec = folder.outcome(), folder.read_spec()
        _check_status(outcome, spec, force=force)
        if max_cost is not None:
            spec = dataclasses.replace(spec, max_cost=max_cost)
        asked = prepare_recorded(relocated(spec, folder), backend)
        approve(asked)
        prepared = _reserve_again(asked, folder, outcome, backend, budget)
        limit = describe_limit(asked, prepared)
        if limit is not None:
            guarded(observer).notice(spec, limit)
        try:
            handle = _submit_again(prepared, folder, outcome, backend, guarded(observer))
        except BaseException:
            release(prepared.reservation)
            raise
        keep_alive(handle)
        settle_at_end(handle, prepared.reservation)
    except BaseException:
        lock.release()
        raise
    handle.when_ended(lock.release)
    return handle


def _check_status(outcome: RunResult, spec: RunSpec, *, force: bool) -> None:
    if outcome.status is RunStatus.SUCCESS:
        raise Error(f"run {outcome.run_id} has succeeded; there's nothing to resume")
    if outcome.status in (RunStatus.RUNNING, RunStatus.PENDING) and not force:
        way = f"ml-experiments runs resume --force {outcome.run_id}"
        text = f"run {outcome.run_id} is {outcome.status}; if you know that it isn't: {way}"
        if spec.backend == "modal":
            text += f". Follow it with: ml-experiments runs follow {outcome.run_id}"
        raise Error(text)


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
    description, template = backend.describe(
        spec.experiment, spec.import_paths, spec.config, spec.seed, is_recorded=True
    )
    return backend.prepare(
        PreparedRun(
            spec,
            (*secret_values(), *description.secrets),
            setup_key=description.setup_key,
            requirements=description.requirements,
            hub_models=description.hub_models,
            template=template,
        )
    )


def _reserve_again(
    prepared: PreparedRun,
    folder: RunFolder,
    outcome: RunResult,
    backend: Backend,
    budget: Budget | None,
) -> PreparedRun:
    """Reserve what another attempt may cost, within the cap of all of them."""
    manifest = folder.read_manifest()
    attempts = outcome.attempts or manifest.attempts(outcome)
    [reserved] = reserve(
        [prepared],
        backend,
        folder.path.parent,
        budget=budget,
        attempt=manifest.attempt + 1,
        # of runs that share a budget, the ledger knows
        spent_usd=0.0 if budget else sum(attempt.cost_usd or 0.0 for attempt in attempts),
    )
    return reserved


def _submit_again(
    prepared: PreparedRun,
    folder: RunFolder,
    outcome: RunResult,
    backend: Backend,
    observer: Observer,
) -> RunHandle:
    """Hand a run over as one that is pending; one that isn't accepted stays as it was."""
    redactor = Redactor(prepared.secrets)
    manifest = folder.read_manifest()
    # where the previous attempt executed says nothing about this one
    pending = dataclasses.replace(
        manifest,
        attempt=manifest.attempt + 1,
        began_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        earlier_attempts=outcome.attempts or manifest.attempts(outcome),
        client=this_process(),
        process=None,
        modal=None,
    )
    result_before = folder.path / ".result-before.json"
    if folder.result_file.exists():
        shutil.copyfile(folder.result_file, result_before)
    try:
        with recorded(folder.path.parent, folder.path.name):
            folder.write_spec(prepared.spec, redactor)
            begun = folder.begin_attempt(pending, redactor)
        handle = backend.submit(prepared, begun, observer)
    except BaseException:
        if result_before.exists() and not folder.result_file.exists():
            result_before.rename(folder.result_file)
        folder.write_manifest(manifest, redactor)
        raise
    result_before.unlink(missing_ok=True)
    return handle


def relocated(spec: RunSpec, folder: RunFolder) -> RunSpec:
    """Return a spec whose experiment is found, though its project's folder has moved.

    What it was imported from is looked for at the same relative place below the folders that hold
    the run folder, and below the current one.
    """
    location, _, name = spec.experiment.rpartition(":")
    if Path(location).name == FILE_NAME:  # of a notebook
        paths = (str(folder.path), *spec.import_paths[1:])
        experiment = f"{folder.path / FILE_NAME}:{name}"
        return dataclasses.replace(spec, experiment=experiment, import_paths=paths)
    if all(Path(path).is_dir() for path in spec.import_paths):
        return spec
    old_root = Path(spec.import_paths[-1])  # the folder that the run was started in
    for root in (Path.cwd(), *folder.path.parents):
        paths = tuple(_moved(path, old_root, root) for path in spec.import_paths)
        experiment = spec.experiment
        if location.endswith(".py"):
            experiment = f"{_moved(location, old_root, root)}:{name}"
        if is_importable(experiment, paths):
            return dataclasses.replace(spec, experiment=experiment, import_paths=paths)
    return spec


def is_importable(experiment: str, import_paths: Iterable[str]) -> bool:
    """Return whether the file of an experiment is where it would be imported from."""
    location = experiment.rpartition(":")[0]
    if location.endswith(".py"):
        return Path(location).is_file()
    module = Path(*parse_experiment_path(experiment).module.split("."))
    return any(
        Path(path, file).exists()
        for path in import_paths
        for file in (module.with_suffix(".py"), module / "__init__.py")
    )


def _moved(path: str, old_root: Path, root: Path) -> str:
    try:
        return str(root / Path(path).relative_to(old_root))
    except ValueError:
        return path


def attach_run(
    folder: RunFolder, *, backend: Backend, observer: Observer | None = None
) -> RunHandle:
    """Take up a run again that has outlived the client that submitted it.

    Raises:
        Error: If it has ended already, or the backend's runs end with their client.
    """
    outcome = folder.outcome()
    if outcome.status not in (RunStatus.PENDING, RunStatus.RUNNING):
        raise Error(f"run {outcome.run_id} has ended with status {outcome.status}")
    return backend.attach(folder, guarded(observer))
