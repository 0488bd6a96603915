"""What runs inside Modal's containers: plain functions, decorated where an app is made."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ipaddress
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import modal
import modal.experimental

import ml_experiments
from ml_experiments.backends.modal.container.checkpoint_commits import CheckpointCommits
from ml_experiments.backends.modal.container.paid_time import PaidTime
from ml_experiments.backends.modal.events import EventPrinter
from ml_experiments.backends.modal.hints import ModalHints
from ml_experiments.backends.modal.mounts import (
    CACHE_VOLUME,
    ENDED_FOLDER,
    RUNS_VOLUME,
    mounted_cache_dir,
)
from ml_experiments.backends.modal.request import RunRequest
from ml_experiments.backends.modal.secrets import attached_values
from ml_experiments.cache.usage.leases import LeaseKeeper
from ml_experiments.errors import ConfigError, RunFolderError
from ml_experiments.execution.launch.nodes import joined, shown_to_nodes
from ml_experiments.execution.supervisor import Cancellation, Supervision
from ml_experiments.execution.worker.messages import Description, RunMessage
from ml_experiments.execution.worker.pool import Template, TemplatePool, WorkerSlot
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest, ModalPlace
from ml_experiments.runs.provenance.environment import with_this_process
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import runs_dir, whole_environment

# next to this package; searched for the experiment only, not by the container as a whole: a
# user's random.py must not hide the standard one from it
SOURCE_FOLDER = "experiment_source"

logger = logging.getLogger(__name__)

# how long a run that is preempted or cancelled may take to save what it has
_SAVE_LIMIT_S = 25.0
_TAKEN = "Modal took the container away; the run goes on in another one"
# what a run needs to begin again, load its checkpoint, and save another one
_MIN_RERUN_S = 5.0
# a finished run must not fail because Modal could not store its files at the first try
_COMMIT_WAITS_S = (0.5, 2.0)

_templates = TemplatePool()
_slot = WorkerSlot()
_events = EventPrinter()
_paid = PaidTime()


def run_remote(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one run in this container and return its result as JSON.

    Args:
        request: A `RunRequest`, as JSON.
    """
    asked = parse_record(RunRequest, request)
    node, addresses = _place_among_nodes() if asked.spec.nodes > 1 else (0, ())
    if node > 0:
        _serve_first_node(asked, node, addresses)
        return {}  # nobody gets it
    with shown_to_nodes(addresses):
        result = _run(asked, addresses)
    # what has passed since the result was stored counts, too
    return _portable(_with_paid_time(result, asked.idle_s))


def _place_among_nodes() -> tuple[int, tuple[str, ...]]:
    """Return which of the machines of a cluster this is, and the addresses of all."""
    cluster = modal.Cluster.from_context()
    addresses = map(ipaddress.ip_address, cluster.container_ips())
    plain = tuple(str(getattr(address, "ipv4_mapped", None) or address) for address in addresses)
    return cluster.container_rank(), plain


def _serve_first_node(asked: RunRequest, number: int, addresses: tuple[str, ...]) -> None:
    """Start the ranks of another node of a run, which is that of node 0."""
    spec = _here(asked.spec)
    with (
        joined(addresses, number, spec.run_id) as node,
        tempfile.NamedTemporaryFile(prefix="output-") as output,
    ):
        if node is None or node.start is None:
            return
        began_at = time.monotonic() - node.start.elapsed_s
        _see_earlier_attempts(_runs_volume())
        folder = runs_dir() / spec.run_id
        folder.mkdir(parents=True, exist_ok=True)
        message = RunMessage(
            spec=dataclasses.replace(spec, timeout_s=node.start.timeout_s),
            folder=str(folder),
            attempt=asked.manifest.attempt,
            output=output.name,
            began_at=began_at,
            secrets=_hidden(asked),
            setup_key=None,
            hints=f"{ModalHints.__module__}:{ModalHints.__qualname__}",
            reports_models=False,
        )
        from ml_experiments.execution.launch.launcher import run_in_ranks  # else not needed

        try:
            outcome = run_in_ranks(message, lambda _event: None, ModalHints(), node)
        finally:
            _commit(_runs_volume())  # before node 0 hears of the end, and the run is over
        node.report(outcome)


def _hidden(asked: RunRequest) -> tuple[str, ...]:
    return (*secret_values(), *attached_values(whole_environment()), *asked.secrets)


def _run(asked: RunRequest, addresses: tuple[str, ...]) -> RunResult:
    """Execute a run, unless it has ended already."""
    began_at = time.monotonic()
    spec = _here(asked.spec)
    # first: it imports the experiment while this process asks for the volume
    template = _templates.get(spec.experiment, spec.import_paths)
    try:
        return _run_from(template, spec, asked, began_at, addresses)
    finally:
        _templates.release(template)


def _run_from(
    template: Template,
    spec: RunSpec,
    asked: RunRequest,
    began_at: float,
    addresses: tuple[str, ...],
) -> RunResult:
    volume = _runs_volume()
    if _is_on_volume(volume, spec.run_id):
        _see_earlier_attempts(volume)
    hidden = _hidden(asked)
    try:
        folder = _open_folder(spec, asked.manifest, Redactor(hidden))
    except RunFolderError as e:  # a full volume
        return _not_begun(spec, e.__cause__ or e)
    if folder.result_file.exists():  # it had ended when its container was taken away
        return folder.read_result()
    if asked.is_capped:
        spec = with_time_left(spec, folder)
        _commit(volume)  # the start, from which the time counts
        if spec.timeout_s == 0:
            return _out_of_time(asked.spec)
    try:
        result = _execute(template, spec, folder, asked.setup_key, hidden, began_at, addresses)
    except BaseException as e:
        if folder.result_file.exists():  # it was over, whatever ends this container
            ended = _store_paid_time(folder, folder.read_result(), asked.idle_s)
            _mark_ended(asked, ended.status)
        elif isinstance(e, KeyboardInterrupt):
            timings = {"total_s": time.monotonic() - began_at, "container_s": _paid.take_s(0.0)}
            folder.record_preemption(_TAKEN, timings, Redactor(hidden))
        # a preempted run goes on from its checkpoints, a cancelled one keeps what it has; the
        # interrupt has to go on in any case, for Modal acts on it
        failure = _commit(volume)
        if failure is not None:
            logger.warning("what the run has left was not stored: %s", failure)
        _let_no_other_run_in()
        raise
    if result.error is not None:
        _describe_machine(folder, Redactor(hidden))
    result = _store_paid_time(folder, result, asked.idle_s)
    _mark_ended(asked, result.status)
    failure = _commit(volume)
    _events.finished(spec, result)
    if result.error is not None and _may_be_the_machines(result.error):
        _let_no_other_run_in()
    return result if failure is None else _not_stored(result, failure)


def _describe_machine(folder: RunFolder, redactor: Redactor) -> None:
    """Say in the manifest what this machine is like, if the run came to no process that says so."""

    def change(manifest: Manifest) -> Manifest:
        return manifest if manifest.environment else with_this_process(manifest)

    with contextlib.suppress(OSError, RunFolderError):  # a full volume
        folder.change_manifest(change, redactor)


def describe(experiment: str, config: Any, seed: int) -> Description:
    """Validate the config of an experiment of an installed package, in a process of its own."""
    [found], template = _templates.describe(experiment, (_shipped_source(),), [config], seed)
    _templates.release(template)
    if isinstance(found, ConfigError):
        raise found
    return found


def _execute(
    template: Template,
    spec: RunSpec,
    folder: RunFolder,
    setup_key: str | None,
    secrets: tuple[str, ...],
    began_at: float,
    addresses: tuple[str, ...],
) -> RunResult:
    """Execute a run in a process of its own, as the local backend does."""
    # what is printed may hold secrets, and the volume is stored every few seconds
    with (
        tempfile.NamedTemporaryFile(prefix="output-") as output,
        _lease_for(spec.run_id) as lease,
        CheckpointCommits(_store_checkpoints) as commits,
    ):
        supervision = Supervision(
            spec,
            folder,
            template=template,
            slot=_slot,
            setup_key=setup_key,
            observer=_events,
            hints=ModalHints(),
            secrets=secrets,
            cancellation=Cancellation(),
            start_limit_s=None,
            began_at=began_at,
            output=Path(output.name),
            on_models=lease.add,
            on_checkpoint=commits.checkpoint_saved,
            addresses=addresses,
            goes_on_elsewhere=True,  # Modal gives its input to another container
        )
        try:
            return supervision.run()
        except BaseException as e:
            # Modal interrupts this process to take the machine away
            is_preempted = isinstance(e, KeyboardInterrupt)
            supervision.end_early(preempted=is_preempted, limit_s=_SAVE_LIMIT_S)
            raise


def _store_checkpoints() -> None:
    failure = _commit(_runs_volume())
    if failure is not None:
        logger.warning("a checkpoint was not stored on the volume yet: %s", failure)


def _lease_for(run_id: str) -> LeaseKeeper:
    """Return what tells other containers which models this run uses."""

    def publish() -> None:
        failure = _commit(_cache_volume())
        if failure is not None:
            logger.warning("other containers may not see which models the run uses: %s", failure)

    return LeaseKeeper(mounted_cache_dir(), run_id, modal.current_function_call_id() or "", publish)


def _mark_ended(asked: RunRequest, status: RunStatus) -> None:
    """Say on the volume how a run has ended; its controller, if it has one, does that later."""
    folder, run_id = runs_dir() / ENDED_FOLDER, asked.spec.run_id
    _forget_end(run_id)
    if asked.manifest.controller is None:
        with contextlib.suppress(OSError):  # a full volume: lists show the run as one that goes on
            folder.mkdir(exist_ok=True)
            (folder / f"{run_id}.{status}").touch()


def _forget_end(run_id: str) -> None:
    """Say on the volume that a run goes on."""
    with contextlib.suppress(OSError):
        for status in RunStatus:
            (runs_dir() / ENDED_FOLDER / f"{run_id}.{status}").unlink(missing_ok=True)


def _here(spec: RunSpec) -> RunSpec:
    """Return the spec with the place where this container has the user's modules."""
    experiment, shipped = spec.experiment, _shipped_source()
    if ".py:" in experiment:
        experiment = f"{shipped}/{experiment}"
    return dataclasses.replace(spec, experiment=experiment, import_paths=(shipped,))


def _shipped_source() -> str:
    return str(Path(ml_experiments.__file__).parents[1] / SOURCE_FOLDER)


@functools.cache
def _runs_volume() -> modal.Volume:
    return modal.Volume.from_name(RUNS_VOLUME)  # looked up once for all runs of this container


@functools.cache
def _cache_volume() -> modal.Volume:
    return modal.Volume.from_name(CACHE_VOLUME)


def _open_folder(spec: RunSpec, manifest: Manifest, redactor: Redactor) -> RunFolder:
    if manifest.modal is not None:  # for other machines, which read it from the volume
        place = dataclasses.replace(
            manifest.modal, function_call_id=modal.current_function_call_id()
        )
        manifest = dataclasses.replace(manifest, modal=place)
    folder = RunFolder(runs_dir() / spec.run_id, manifest.attempt)
    if not folder.path.is_dir():
        return RunFolder.create(runs_dir(), spec, _executed_here(manifest), redactor)
    known = folder.read_manifest()
    is_claim = known.process is None and not known.earlier_attempts  # of the id, by its client
    if known.submission != manifest.submission:
        # the user resumes the run: its checkpoints count, its old result doesn't
        _forget_end(spec.run_id)
        if not is_claim:
            return folder.begin_attempt(manifest, redactor)
    if is_claim:
        claimed = RunFolder(folder.path)  # perhaps by a client that was lost before an attempt
        claimed.write_spec(spec, redactor)
        claimed.write_manifest(_executed_here(manifest), redactor)
        claimed.log_file.touch()
    elif not folder.result_file.exists() and known.process is not None:
        # its container was taken away before it could say so
        folder.record_preemption(_TAKEN, {}, redactor)
    return folder


def _executed_here(manifest: Manifest) -> Manifest:
    """Return a manifest that names this process; the run's own says what the machine is like."""
    return dataclasses.replace(manifest, process=this_process())


def with_time_left(spec: RunSpec, folder: RunFolder) -> RunSpec:
    """Return the spec with what is left of the timeout since the first container has started.

    Modal runs a preempted run again and gives it its whole timeout, which a cap can't pay for. It
    is 0 where too little is left to do anything.
    """
    manifest = folder.read_manifest()
    place = manifest.modal or ModalPlace()
    if place.started_at is None:
        place = dataclasses.replace(place, started_at=time.time())
        folder.write_manifest(dataclasses.replace(manifest, modal=place), Redactor(()))
        return spec
    assert spec.timeout_s is not None
    # a clock that was set back gives no more time
    left_s = min(spec.timeout_s, spec.timeout_s - (time.time() - place.started_at))
    return dataclasses.replace(spec, timeout_s=left_s if left_s >= _MIN_RERUN_S else 0.0)


def _out_of_time(spec: RunSpec) -> RunResult:
    return RunResult(
        run_id=spec.run_id,
        status=RunStatus.ERROR,
        experiment_class=spec.experiment,
        error=RunError(
            ErrorKind.TIMEOUT,
            "TimeoutError",
            f"the run was interrupted and began again, and the {spec.timeout_s:g} s that its cap "
            "allows were over by then",
            hint=f"ml-experiments runs resume {spec.run_id} --max-cost USD goes on from its "
            "checkpoints",
        ),
    )


def _see_earlier_attempts(volume: modal.Volume) -> None:
    """Make visible what an attempt in another container has left."""
    try:
        volume.reload()
    except RuntimeError as e:
        # a file that the last run left open
        logger.warning("checkpoints of an earlier attempt may not be seen: %s", e)


def _may_be_the_machines(error: RunError) -> bool:
    """Return whether an error may have its cause in the machine, or have broken the GPU."""
    if error.kind in (ErrorKind.INFRASTRUCTURE, ErrorKind.HOST_OOM):
        return True
    return "CUDA error" in error.message and error.kind is not ErrorKind.CUDA_OOM


def _let_no_other_run_in() -> None:
    """Let this container end after the run."""
    modal.experimental.stop_fetching_inputs()


def _is_on_volume(volume: modal.Volume, run_id: str) -> bool:
    """Return whether there is anything of the run; a reload, which would show it, takes longer."""
    try:
        return bool(volume.listdir(f"/{run_id}"))
    except modal.exception.NotFoundError:
        return False


def _commit(volume: modal.Volume) -> Exception | None:
    """Store what was written to the volume, also after a failure or two; return what went wrong."""
    failure: Exception | None = None
    for wait_s in (0.0, *_COMMIT_WAITS_S):
        time.sleep(wait_s)
        try:
            volume.commit()
        except (modal.exception.Error, RuntimeError) as e:
            failure = e
        else:
            return None
    return failure


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


def _with_paid_time(result: RunResult, idle_s: float) -> RunResult:
    """Return a result that counts the seconds of this container that no other one counts."""
    container_s = result.timings.get("container_s", 0.0) + _paid.take_s(idle_s)
    return dataclasses.replace(result, timings={**result.timings, "container_s": container_s})


def _store_paid_time(folder: RunFolder, result: RunResult, idle_s: float) -> RunResult:
    """Write the seconds of this container into the result in the folder, too."""
    try:
        return folder.write_result(_with_paid_time(result, idle_s), Redactor(()))
    except (OSError, RunFolderError):  # a full volume: they travel with the result
        return result


def _portable(result: RunResult) -> dict[str, Any]:
    return {**result.to_dict(), "run_dir": None}
