"""What a job executes on its node: it supervises the worker of one run, as any backend does."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from typing_extensions import override

from ml_experiments.backends.slurm.queue import call, facts_of
from ml_experiments.errors import BackendError
from ml_experiments.execution.events import Event, Metrics, Progress, Started, event_to_json
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.supervisor import Cancellation, Supervision
from ml_experiments.execution.worker.pool import TemplatePool, WorkerSlot
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import Heartbeat
from ml_experiments.runs.provenance.fingerprint import SourceFiles
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import slurm_job

EVENTS_FILE = ".events.jsonl"
# Slurm kills a job some time after it has sent SIGTERM: KillWait, 30 s unless the cluster says else
_SAVE_LIMIT_S = 20.0
# how long a client may take to record a job that has begun already
_SUBMIT_LIMIT_S = 30.0
_LOOK_EVERY_S = 0.05
_TAKEN = "Slurm took the node away; the run goes on in the next start of its job"


class SlurmHints(Hints):
    """Hints for a run on a Slurm cluster."""

    @override
    def larger_gpu(self, spec: RunSpec) -> str:
        return "ask for a GPU type with more memory, "

    @override
    def more_memory(self) -> str:
        return "ask for more: memory_gib"


def execute_job(path: str, attempt: int, source: SourceFiles) -> None:
    """Execute a run on the node of its job; the outcome is in the run folder.

    Args:
        path: The run folder.
        attempt: The attempt at the run that the job is for.
        source: The source files as they were when the run was submitted.
    """
    folder = RunFolder(Path(path), attempt)
    redactor = Redactor(secret_values())
    if folder.result_file.exists():
        return  # the job was started once more, though the run had ended
    _wait_until_submitted(folder)
    if source.have_changed():  # while the job waited in the queue
        folder.forget_fingerprint(redactor)
    if folder.read_manifest().process is not None:
        folder.record_preemption(_TAKEN, {}, redactor)  # killed before it could say so
    began_at = time.monotonic()
    job = _Job()
    heartbeat = Heartbeat()
    heartbeat.add(folder.path, job.cancel)
    try:
        if _execute(folder, job):
            return
        folder.record_preemption(_TAKEN, {"total_s": time.monotonic() - began_at}, redactor)
    finally:
        heartbeat.remove(folder.path)
    job.start_again(folder, redactor)


def _wait_until_submitted(folder: RunFolder) -> None:
    """Wait until the client has recorded the job: the manifest is this process's from then on."""
    ends_at = time.monotonic() + _SUBMIT_LIMIT_S
    while folder.read_manifest().job is None and time.monotonic() < ends_at:
        time.sleep(_LOOK_EVERY_S)


def _execute(folder: RunFolder, job: _Job) -> bool:
    """Execute the run; return whether it has a result, and was not taken away."""
    spec = folder.read_spec()
    _, _, cpus = slurm_job()
    threads = cpus and max(1, cpus // (spec.nproc_per_node or 1))
    templates, slot = TemplatePool(threads), WorkerSlot()
    template = templates.get(spec.experiment, spec.import_paths)
    job.handle_signals()
    supervision: Supervision | None = None
    try:
        with (folder.path / EVENTS_FILE).open("a", encoding="utf-8") as events:
            supervision = Supervision(
                spec,
                folder,
                template=template,
                slot=slot,
                setup_key=None,
                observer=_EventWriter(events),
                hints=SlurmHints(),
                secrets=secret_values(),
                cancellation=job.cancellation,
                start_limit_s=None,
            )
            supervision.run()
    except KeyboardInterrupt:
        if supervision is not None:
            supervision.end_early(preempted=True, limit_s=_SAVE_LIMIT_S)
        return folder.result_file.exists()
    finally:
        slot.close()
        templates.release(template)
        templates.close()
    return True


class _Job:
    """What Slurm wants of this job, by signals.

    Attributes:
        cancellation: The request to end the run.
    """

    def __init__(self) -> None:
        self.cancellation = Cancellation()
        self._id, self._restarts, _ = slurm_job()
        self._is_asked_to_save = False
        # Slurm sends them to all that a job has started; there, the run's own processes are
        # ended by this one
        for signum in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, signal.SIG_IGN)

    def handle_signals(self) -> None:
        """Handle signals from now on, in this process alone."""
        signal.signal(signal.SIGINT, self._on_cancel)
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGUSR2, self._on_save)

    def cancel(self, at_once: bool) -> None:
        """End the run."""
        if at_once:
            self.cancellation.at_once.set()
        self.cancellation.requested.set()

    def start_again(self, folder: RunFolder, redactor: Redactor) -> None:
        """Have Slurm start the job once more, unless it does so by itself."""
        if not self._is_asked_to_save or self._id is None:
            return
        try:
            call("scontrol", "requeue", self._id)
        except BackendError as e:
            error = RunError(ErrorKind.PREEMPTED, type(e).__name__, str(e), hint=_resume(folder))
            spec = folder.read_spec()
            result = RunResult(spec.run_id, RunStatus.ERROR, spec.experiment, error=error)
            folder.write_result(result, redactor)

    def _on_cancel(self, _signum: int, _frame: FrameType | None) -> None:
        self.cancel(at_once=False)

    def _on_end(self, _signum: int, _frame: FrameType | None) -> None:
        """Tell the end of a job from one that is going to be started again."""
        facts = {} if self._id is None else facts_of(self._id)
        if int(facts.get("Restarts", self._restarts)) > self._restarts:
            raise KeyboardInterrupt
        self.cancel(at_once=False)

    def _on_save(self, _signum: int, _frame: FrameType | None) -> None:
        """Save, and run again: the limit of the job is near, or another one needs the node."""
        self._is_asked_to_save = True
        raise KeyboardInterrupt


class _EventWriter(Observer):
    """Writes what happens in a run to a file, from which its client reads it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @override
    def started(self, spec: RunSpec) -> None:
        self._write(Started())

    @override
    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        self._write(Progress(done, total, text))

    @override
    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        self._write(Metrics(dict(metrics), step))

    def _write(self, event: Event) -> None:
        self._file.write(json.dumps(event_to_json(event)) + "\n")
        self._file.flush()


def _resume(folder: RunFolder) -> str:
    return f"ml-experiments runs resume {folder.path.name} goes on from its checkpoints"
