"""What runs inside Modal's containers: plain functions, decorated where an app is made."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import modal
import modal.experimental

import ml_experiments
from ml_experiments.backends.modal.container.output import ContainerOutput
from ml_experiments.backends.modal.hints import ModalHints
from ml_experiments.backends.modal.mounts import CACHE_VOLUME, RUNS_VOLUME, mounted_cache_dir
from ml_experiments.backends.modal.request import RunRequest
from ml_experiments.backends.modal.secrets import attached_values
from ml_experiments.cache.usage.leases import LeaseKeeper
from ml_experiments.errors import RunFolderError
from ml_experiments.execution.execute import execute_run, with_this_process
from ml_experiments.execution.warm_experiment import WarmExperiment
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import runs_dir, whole_environment

# next to this package; searched for the experiment only, not by the container as a whole: a
# user's random.py must not hide the standard one from it
SOURCE_FOLDER = "experiment_source"

logger = logging.getLogger(__name__)

_warm = WarmExperiment()


def run_remote(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one run in this container and return its result as JSON.

    Args:
        request: A `RunRequest`, as JSON.
    """
    asked = parse_record(RunRequest, request)
    spec = _here(asked.spec)
    volume = _runs_volume()
    if _is_on_volume(volume, spec.run_id):
        _see_earlier_attempts(volume)
    hidden = (*secret_values(), *attached_values(whole_environment()), *asked.secrets)
    try:
        folder = _open_folder(spec, asked.manifest, Redactor(hidden))
    except RunFolderError as e:  # a full volume
        return _portable(_not_begun(spec, e.__cause__ or e))
    if folder.result_file.exists():  # it had ended when its container was taken away
        return _portable(folder.read_result())
    output = _container_output()
    output.send({"event": "started"})
    try:
        with output.capture(folder.log_file, hidden), _lease_for(spec.run_id) as lease:
            result = execute_run(
                spec,
                folder,
                emit=output.send,
                warm=_warm,
                hints=ModalHints(),
                interrupt="preempts",
                cancellations=(modal.exception.InputCancellation,),
                secrets=hidden,
                on_repositories=lease.add,
            )
    except BaseException:
        # a preempted run goes on from its checkpoints, a cancelled one keeps what it has; the
        # interrupt has to go on in any case, for Modal acts on it
        failure = _commit(volume)
        if failure is not None:
            logger.warning("what the run has left was not stored: %s", failure)
        _let_no_other_run_in()
        raise
    failure = _commit(volume)
    output.send({"event": "finished"})
    if result.status is not RunStatus.SUCCESS:
        _let_no_other_run_in()
    return _portable(result if failure is None else _not_stored(result, failure))


def _lease_for(run_id: str) -> LeaseKeeper:
    """Return what tells other containers which models this run uses."""

    def publish() -> None:
        failure = _commit(_cache_volume())
        if failure is not None:
            logger.warning("other containers may not see which models the run uses: %s", failure)

    return LeaseKeeper(mounted_cache_dir(), run_id, modal.current_function_call_id() or "", publish)


def _here(spec: RunSpec) -> RunSpec:
    """Return the spec with the place where this container has the user's modules."""
    shipped = Path(ml_experiments.__file__).parents[1] / SOURCE_FOLDER
    experiment = spec.experiment
    if ".py:" in experiment:
        experiment = str(shipped / experiment)
    return dataclasses.replace(spec, experiment=experiment, import_paths=(str(shipped),))


@functools.cache
def _runs_volume() -> modal.Volume:
    return modal.Volume.from_name(RUNS_VOLUME)  # looked up once for all runs of this container


@functools.cache
def _cache_volume() -> modal.Volume:
    return modal.Volume.from_name(CACHE_VOLUME)


@functools.cache
def _container_output() -> ContainerOutput:
    return ContainerOutput()


def _open_folder(spec: RunSpec, manifest: Manifest, redactor: Redactor) -> RunFolder:
    folder = RunFolder(runs_dir() / spec.run_id)
    if not folder.path.is_dir():
        return RunFolder.create(runs_dir(), spec, with_this_process(manifest), redactor)
    if folder.read_manifest().submission != manifest.submission:
        # the user resumes the run: its checkpoints count, its old result doesn't
        folder.result_file.unlink(missing_ok=True)
        folder.write_manifest(manifest, redactor)
    return folder


def _see_earlier_attempts(volume: modal.Volume) -> None:
    """Make visible what an attempt in another container has left."""
    try:
        volume.reload()
    except RuntimeError as e:
        # a file that the last run left open
        logger.warning("checkpoints of an earlier attempt may not be seen: %s", e)


def _let_no_other_run_in() -> None:
    """Let this container end: a run that failed may leave anything behind, as a broken GPU."""
    modal.experimental.stop_fetching_inputs()


def _is_on_volume(volume: modal.Volume, run_id: str) -> bool:
    """Return whether there is anything of the run; a reload, which would show it, takes longer."""
    try:
        return bool(volume.listdir(f"/{run_id}"))
    except modal.exception.NotFoundError:
        return False


def _commit(volume: modal.Volume) -> Exception | None:
    """Store what was written to the volume; return what went wrong."""
    try:
        volume.commit()
    except (modal.exception.Error, RuntimeError) as e:
        return e
    return None


def _not_begun(spec: RunSpec, error: BaseException) -> RunResult:
    return RunResult(
        run_id=spec.run_id,
        status=RunStatus.ERROR,
        experiment_class=spec.experiment,
        error=ModalHints().describe(error, spec),
    )


def _not_stored(result: RunResult, failure: Exception) -> RunResult:
    error = RunError(
        ErrorKind.INFRASTRUCTURE,
        type(failure).__name__,
        f"the run ended with status {result.status}, but the volume {RUNS_VOLUME} did not take "
        f"its files: {failure}",
        hint=f"free space, as with: modal volume rm -r {RUNS_VOLUME} RUN_ID",
    )
    return dataclasses.replace(result, status=RunStatus.ERROR, error=result.error or error)


def _portable(result: RunResult) -> dict[str, Any]:
    return {**result.to_dict(), "run_dir": None}
