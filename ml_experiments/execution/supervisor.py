"""Supervises one run in a worker process: the same on this machine and in a Modal container."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ml_experiments.errors import BackendError, RunFolderError, SupersededError
from ml_experiments.execution.events import (
    CheckpointSaved,
    Event,
    Finished,
    ModelsUsed,
    Started,
    deliver,
    event_from_json,
)
from ml_experiments.execution.hints import Hints, describe_damaged_folder
from ml_experiments.execution.logs import LogTail, log_traceback, redact_log
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.worker.death import (
    describe_death_in_run,
    describe_failed_start,
    describe_hard_timeout,
    read_log_tail,
)
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.execution.worker.pool import Template, WorkerSlot
from ml_experiments.execution.worker.process import WorkerProcess
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.checksums import write_checksums

CANCEL_GRACE_S = 5.0
START_LIMIT_S = 60.0
# for what a process does after its run: flush files, call atexit handlers and finalizers
END_GRACE_S = 10.0
_CHECKSUMS_LIMIT_S = 30.0
_TICK_S = 0.05
# a run is ended here so long before the platform ends this process, too
_PLATFORM_MARGIN_S = 0.5


class Cancellation:
    """A request to end a run, made from any thread.

    Attributes:
        requested: Set to interrupt the run.
        at_once: Set to kill it.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.at_once = threading.Event()


class Supervision:
    """Brings one run to its end in one slot: shows its output, watches the clock and the process.

    Args:
        spec: What to run.
        folder: Its run folder.
        template: The template of the experiment.
        slot: Where its worker is.
        setup_key: For which later runs the worker is kept; None for none.
        observer: Receives live events.
        hints: What the user can do about an error, where the run executes.
        secrets: Values that no record may hold.
        cancellation: The request to end the run.
        start_limit_s: Seconds until the run has to start; None for no limit.
        began_at: When the run's timeout began to count, as `time.monotonic()`, where that is
            before the run starts: the platform counts, and will end this process, too.
        output: Where its process writes what it prints; the log file itself by default.
        on_models: Receives the models of the cache that the run uses.
        on_checkpoint: Called when the run has saved a checkpoint.
        addresses: See `RunMessage`.
        goes_on_elsewhere: See `RunMessage`.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        *,
        template: Template,
        slot: WorkerSlot,
        setup_key: str | None,
        observer: Observer,
        hints: Hints,
        secrets: tuple[str, ...],
        cancellation: Cancellation,
        start_limit_s: float | None = START_LIMIT_S,
        began_at: float | None = None,
        output: Path | None = None,
        on_models: Callable[[tuple[str, ...]], None] | None = None,
        on_checkpoint: Callable[[], None] = lambda: None,
        addresses: tuple[str, ...] = (),
        goes_on_elsewhere: bool = False,
    ) -> None:
        self._spec, self._folder = spec, folder
        self._template, self._slot, self._setup_key = template, slot, setup_key
        self._observer = observer
        self._hints = hints
        self._secrets = secrets
        self._redactor = Redactor(secrets)
        self._cancellation = cancellation
        self._start_limit_s = start_limit_s
        self._began_at = began_at
        self._output = output or folder.log_file
        self._on_models = on_models
        self._on_checkpoint = on_checkpoint
        self._addresses = addresses
        self._goes_on_elsewhere = goes_on_elsewhere
        self._cancel_sent = False
        self._has_started = False
        self._may_start_again = True
        self._worker: WorkerProcess | None = None

    def run(self) -> RunResult:
        """Execute the run and return its result, whatever becomes of the worker."""
        if self._cancellation.requested.is_set():
            return self._write(RunStatus.CANCELLED, None)
        try:
            with contextlib.closing(
                LogTail(self._spec, self._folder, self._output, self._observer, self._redactor)
            ) as self._tail:
                self._tail.skip_earlier()
                result = self._event_loop()
                redact_log(self._folder, self._redactor)
                self._tail.show_rest(self._cancellation.requested.is_set)
        except (BackendError, OSError) as e:  # no room for another process or open file
            self._slot.drop()
            result = self._ended(RunStatus.ERROR, self._own_error(e))
        log_traceback(self._folder, result)
        self._write_checksums(result)
        return result

    def _write_checksums(self, result: RunResult) -> None:
        """Write the hashes of the artifacts, by which a damaged copy is found later."""
        left_s = self._time_limit() - time.monotonic() if self._began_at is not None else math.inf
        limit_s = min(_CHECKSUMS_LIMIT_S, max(0.0, left_s / 2))  # they have to be stored, too
        with contextlib.suppress(OSError):  # such as a full disk
            names = [artifact.path for artifact in result.artifacts]
            write_checksums(self._folder.path, names, limit_s)

    def end_early(self, *, preempted: bool, limit_s: float) -> None:
        """Interrupt the run, whose `run()` was left by an exception, and end its worker.

        Args:
            preempted: Whether the run leaves no result, because it runs again elsewhere.
            limit_s: How long it may take to save what it has.
        """
        worker, ends_at = self._worker, time.monotonic() + limit_s
        if worker is None:
            return
        worker.send({"interrupt": self._spec.run_id, "preempted": preempted})
        try:
            while time.monotonic() < ends_at:
                if any(m.get("event") == "finished" for m in worker.read(_TICK_S)):
                    worker.wait(END_GRACE_S)
                    break
        except EOFError:
            pass
        self._slot.drop()
        redact_log(self._folder, self._redactor)

    def _event_loop(self) -> RunResult:
        worker = self._dispatch()
        is_behind = False
        while True:
            try:
                for message in worker.read(0 if is_behind else _TICK_S):
                    if message.get("run") != self._spec.run_id:
                        continue  # from a thread that an earlier run left behind
                    event = event_from_json(message)
                    if isinstance(event, Finished) and event.needs_process:
                        self._slot.close_worker()
                        worker = self._dispatch()
                        break
                    result = self._handle_event(event, worker)
                    if result is not None:
                        return result
            except EOFError:
                if self._has_started or self._cancel_sent or not self._may_start_again:
                    return self._worker_died(worker)
                self._may_start_again = False
                self._slot.drop()
                worker = self._dispatch()
            is_behind = self._tail.show_some()
            self._pass_on_cancel(worker)
            if self._cancellation.at_once.is_set():
                self._slot.drop()
                return self._ended(RunStatus.CANCELLED, None)
            if time.monotonic() > self._deadline:
                self._slot.drop()
                return self._time_is_up()

    def _dispatch(self) -> WorkerProcess:
        worker = self._worker = self._slot.worker_for(
            self._template, self._setup_key, self._output, self._folder, self._secrets
        )
        message = RunMessage(
            spec=self._spec,
            folder=str(self._folder.path),
            attempt=self._folder.attempt,
            output=str(self._output),
            began_at=self._began_at,
            secrets=self._secrets,
            setup_key=self._setup_key,
            hints=f"{type(self._hints).__module__}:{type(self._hints).__qualname__}",
            reports_models=self._on_models is not None,
            addresses=self._addresses,
            goes_on_elsewhere=self._goes_on_elsewhere,
        )
        worker.send({"run": message.to_dict()})
        if self._cancel_sent:  # to the worker before this one
            worker.send({"interrupt": self._spec.run_id, "preempted": False})
        else:
            limit = float("inf") if self._start_limit_s is None else self._start_limit_s
            ends_at = self._time_limit() if self._began_at is not None else float("inf")
            self._deadline = min(time.monotonic() + limit, ends_at)
        return worker

    def _handle_event(self, event: Event, worker: WorkerProcess) -> RunResult | None:
        """Act on an event; return the result if it is the run's end."""
        match event:
            case Finished():
                return self._finish(event, worker)
            case ModelsUsed(folders):
                if self._on_models is not None:
                    self._on_models(folders)
                return None
            case CheckpointSaved():
                self._on_checkpoint()
                return None
            case Started():
                if not self._cancel_sent:  # else it has to end before long
                    self._deadline = self._time_limit()
                if self._has_started:  # in the process that has checked the config
                    return None
                self._has_started = True
        deliver(event, self._observer, self._spec)
        return None

    def _finish(self, finished: Finished, worker: WorkerProcess) -> RunResult:
        """Let the worker's process end as a Python program does; return the result."""
        if not finished.stays:
            ends_at = time.monotonic() + END_GRACE_S
            while not worker.wait(_TICK_S) and time.monotonic() < ends_at:
                self._tail.show_some()
                if self._cancellation.at_once.is_set():
                    break
            if not worker.has_ended and not self._cancellation.at_once.is_set():
                self._observer.notice(
                    self._spec,
                    f"the process of run {self._spec.run_id} had not ended {END_GRACE_S:g} s after "
                    "its run, and was killed: a thread or an exit handler of it went on",
                )
            self._slot.drop()
        if finished.result is not None:  # the worker could not write it
            return RunResult.from_dict(finished.result, run_dir=self._folder.path)
        if not finished.has_result:
            return self._write(RunStatus.CANCELLED, None)
        try:
            result = self._folder.read_result()
        except RunFolderError as e:  # deleted or overwritten since, as by an exit handler
            return self._write(RunStatus.ERROR, describe_damaged_folder(e))
        artifacts = self._folder.list_artifacts()
        if artifacts != result.artifacts:  # the process has written files at its end
            result = dataclasses.replace(result, artifacts=artifacts)
            return self._folder.write_result(result, self._redactor)
        return result

    def _time_limit(self) -> float:
        """Return when a run that starts now has to be ended."""
        if self._spec.timeout_s is None:
            return float("inf")
        if self._began_at is None:
            return time.monotonic() + self._spec.timeout_s
        return self._began_at + self._spec.timeout_s - _PLATFORM_MARGIN_S

    def _pass_on_cancel(self, worker: WorkerProcess) -> None:
        if self._cancellation.requested.is_set() and not self._cancel_sent:
            self._cancel_sent = True
            worker.send({"interrupt": self._spec.run_id, "preempted": False})
            self._deadline = min(self._deadline, time.monotonic() + CANCEL_GRACE_S)

    def _time_is_up(self) -> RunResult:
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        if self._has_started or self._start_limit_s is None:
            return self._ended(RunStatus.ERROR, describe_hard_timeout(self._spec, self._hints))
        what = f"did not start within {self._start_limit_s:g} s"
        return self._ended(RunStatus.ERROR, describe_failed_start(what, self._log_tail()))

    def _worker_died(self, worker: WorkerProcess) -> RunResult:
        code = worker.exit_code
        self._slot.drop()
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        if self._has_started:
            error = describe_death_in_run(
                -9 if code is None else code, self._spec, self._log_tail(), self._hints
            )
        else:
            what = f"ended with code {code} before it started the run"
            error = describe_failed_start(what, self._log_tail())
        return self._ended(RunStatus.ERROR, error)

    def _log_tail(self) -> str:
        return read_log_tail(self._output, self._redactor)

    def _ended(self, status: RunStatus, error: RunError | None) -> RunResult:
        """Return the result that the worker left, or write the one that it couldn't."""
        if self._folder.result_file.exists():
            return self._folder.read_result()
        return self._write(status, error)

    def _write(self, status: RunStatus, error: RunError | None) -> RunResult:
        result = RunResult(
            run_id=self._spec.run_id,
            status=status,
            experiment_class=self._spec.experiment,
            error=error,
            artifacts=self._folder.list_artifacts(),
        )
        try:
            return self._folder.write_result(result, self._redactor)
        except SupersededError:
            return result
        except (OSError, RunFolderError) as e:
            error = error or self._own_error(e)
            return dataclasses.replace(result, status=RunStatus.ERROR, error=error)

    def _own_error(self, error: Exception) -> RunError:
        """Return the error of a run that failed for want of something on this machine."""
        if isinstance(error, RunFolderError):
            return describe_damaged_folder(error)
        hint = self._hints.hint_for(ErrorKind.INFRASTRUCTURE, error, self._spec)
        return RunError(ErrorKind.INFRASTRUCTURE, type(error).__name__, str(error), hint=hint)
