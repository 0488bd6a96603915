"""Takes up runs that are there: again from their checkpoints, or as they go on elsewhere."""

from __future__ import annotations

import dataclasses

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.observers import guarded
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.result import RunStatus
from ml_experiments.runs.spec import PreparedRun


def resume_run(
    folder: RunFolder, *, backend: Backend, observer: Observer | None = None
) -> RunHandle:
    """Run a run again that did not succeed, in its own folder, from its checkpoints.

    Raises:
        Error: If it succeeded, is still going on, or its record had secrets taken out.
    """
    folder = RunFolder(folder.path.expanduser().resolve())
    lock = RunLock.take(folder)
    try:
        prepared = _check_resumable(folder, backend)
        handle = _submit_again(prepared, folder, backend, guarded(observer))
    except BaseException:
        lock.release()
        raise
    handle.when_ended(lock.release)
    return handle


def _check_resumable(folder: RunFolder, backend: Backend) -> PreparedRun:
    outcome, spec = folder.outcome(), folder.read_spec()
    if outcome.status in (RunStatus.SUCCESS, RunStatus.RUNNING, RunStatus.PENDING):
        text = f"run {outcome.run_id} has status {outcome.status}; there's nothing to resume"
        if outcome.status is not RunStatus.SUCCESS and spec.backend == "modal":
            text += f". Follow it with: ml-experiments runs attach {outcome.run_id}"
        raise Error(text)
    if Redactor.MARK in str(spec.config):
        raise Error(
            f"the config of run {spec.run_id} held a secret, which was not recorded; "
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


def _submit_again(
    prepared: PreparedRun, folder: RunFolder, backend: Backend, observer: Observer
) -> RunHandle:
    """Hand a run over as one that is pending; one that isn't accepted stays as it was."""
    redactor = Redactor(prepared.secrets)
    manifest = folder.read_manifest()
    # where the previous attempt executed says nothing about this one
    pending = dataclasses.replace(manifest, client=this_process(), process=None, modal=None)
    result_before = folder.path / ".result-before.json"
    if folder.result_file.exists():
        folder.result_file.rename(result_before)
    try:
        folder.write_manifest(pending, redactor)
        handle = backend.submit(prepared, folder, observer)
    except BaseException:
        if result_before.exists() and not folder.result_file.exists():
            result_before.rename(folder.result_file)
        folder.write_manifest(manifest, redactor)
        raise
    result_before.unlink(missing_ok=True)
    return handle


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
