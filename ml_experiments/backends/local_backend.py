"""Runs experiments on this machine, in worker processes that stay warm."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from ml_experiments.backends.base import Backend, Observer, RunHandle
from ml_experiments.backends.local_gpus import list_gpus
from ml_experiments.backends.worker_process import START_LIMIT_S, WorkerProcess
from ml_experiments.errors import BackendError
from ml_experiments.failures import hint_for
from ml_experiments.redaction import Redactor, StreamRedactor, redact_file
from ml_experiments.run_folder import RunFolder
from ml_experiments.runs import ErrorKind, PreparedRun, RunError, RunResult, RunSpec, RunStatus

CANCEL_GRACE_S = 5.0
_TICK_S = 0.05
_LOG_CHUNK = 1 << 20
_CRASH_MARK = "Fatal Python error"
_LONGEST_CRASH_REPORT = 16 * 1024


class LocalBackend(Backend):
    """Worker processes on this machine.

    Args:
        max_workers: How many runs at a time; by default one per GPU, or one without any.
            Several share the cores evenly (OMP_NUM_THREADS, unless it is set).
    """

    name: ClassVar[str] = "local"

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise BackendError(f"max_workers is {max_workers}; it must be at least 1")
        gpus = list_gpus()
        count = max_workers or max(1, len(gpus))
        threads = max(1, (os.cpu_count() or 1) // count) if count > 1 else None
        self._slots = [_Slot(gpus[i % len(gpus)] if gpus else None, threads) for i in range(count)]
        self._free = list(self._slots)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="local-run")

    def check(self, spec: RunSpec) -> RunSpec:
        """Refuse a GPU type: this machine has the GPUs that it has."""
        refuse_gpu(spec)
        return spec

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Queue a run for the next free worker."""
        handle = LocalRunHandle(prepared.spec, folder)
        redactor = Redactor(prepared.secrets)
        handle.future = self._threads.submit(self._execute, handle, observer, redactor)
        return handle

    def close(self) -> None:
        """Wait for the queued runs, then end the workers."""
        self._threads.shutdown(wait=True)
        for slot in self._slots:
            slot.close()

    def _execute(self, handle: LocalRunHandle, observer: Observer, redactor: Redactor) -> RunResult:
        slot = self._take_slot(handle.spec)
        try:
            result = _Supervision(handle, observer, slot, redactor).run()
        finally:
            with self._lock:
                self._free.append(slot)
        observer.finished(handle.spec, result)
        return result

    def _take_slot(self, spec: RunSpec) -> _Slot:
        """Return a free slot, at best one whose worker ran the same experiment last."""
        with self._lock:
            best = max(self._free, key=lambda slot: slot.last_experiment == spec.experiment)
            self._free.remove(best)
        best.last_experiment = spec.experiment
        return best


def refuse_gpu(spec: RunSpec) -> None:
    """Raise when a GPU type is asked for where it can't be chosen."""
    if spec.gpu is not None:
        raise BackendError(
            f"gpu={spec.gpu!r} can't be asked for on the {spec.backend} backend, which uses this "
            "machine's own GPUs; leave it out, or use the modal backend"
        )


class LocalRunHandle(RunHandle):
    """A run that waits for a worker, executes in one, or has ended."""

    future: Future[RunResult]

    def __init__(self, spec: RunSpec, folder: RunFolder) -> None:
        super().__init__(spec, folder)
        self.cancel_asked = threading.Event()
        self.kill_asked = threading.Event()

    def result(self, timeout_s: float | None = None) -> RunResult:
        """Wait for the run to end and return its result."""
        return self.future.result(timeout_s)

    def cancel(self, *, at_once: bool = False) -> None:
        """End the run, queued or executing."""
        if at_once:
            self.kill_asked.set()
        self.cancel_asked.set()


class _Slot:
    """A place for one worker process, with its GPU."""

    def __init__(self, gpu: str | None, threads: int | None) -> None:
        self._gpu = gpu
        self._threads = threads
        self.last_experiment: str | None = None
        self._worker: WorkerProcess | None = None

    def worker(self, log_file: Path) -> WorkerProcess:
        """Return the slot's worker, started if there is none."""
        if self._worker is None:
            self._worker = WorkerProcess(self._gpu, self._threads, log_file)
        return self._worker

    def drop(self) -> None:
        """End the worker at once; the next run starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def close(self) -> None:
        """End an idle worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Supervision:
    """Sees one run through in one slot: relays, watches the clock, notices a dead worker."""

    def __init__(
        self, handle: LocalRunHandle, observer: Observer, slot: _Slot, redactor: Redactor
    ) -> None:
        self._handle = handle
        self._spec = handle.spec
        self._folder = handle.folder
        self._observer = observer
        self._slot = slot
        self._redactor = redactor
        self._log_redactor = StreamRedactor(redactor)
        self._cancel_sent = False
        # until the worker says that it has started, the limit is that of its start
        self._deadline = time.monotonic() + START_LIMIT_S
        self._has_started = False

    def run(self) -> RunResult:
        """Execute the run and return its result, whatever becomes of the worker."""
        if self._handle.cancel_asked.is_set():
            return self._write(RunStatus.CANCELLED, None)
        with self._folder.log_file.open("rb") as log:
            result = self._converse(log)
            self._relay_log(log, last=True)
        if result.status is not RunStatus.SUCCESS:
            self._slot.drop()  # it may hold children, locked memory or a broken CUDA context
        redact_file(self._folder.log_file, self._redactor)
        return result

    def _converse(self, log: BinaryIO) -> RunResult:
        self._dispatch()
        while True:
            try:
                for event in self._worker.read_events(_TICK_S):
                    if event["event"] == "finished":
                        return self._result_of(event)
                    self._hear(event)
            except EOFError:
                return self._worker_died()
            self._relay_log(log)
            self._pass_on_cancel()
            if self._handle.kill_asked.is_set():
                self._slot.drop()
                return self._ended(RunStatus.CANCELLED, None)
            if time.monotonic() > self._deadline:
                self._slot.drop()
                return self._time_is_up()

    def _result_of(self, finished: dict[str, Any]) -> RunResult:
        if "result" in finished:  # the worker could not write it
            return RunResult.from_dict(finished["result"], run_dir=self._folder.path)
        return self._folder.read_result()

    def _dispatch(self) -> None:
        self._worker = self._slot.worker(self._folder.log_file)
        self._worker.send({"run": self._spec.to_dict(), "folder": str(self._folder.path)})

    def _hear(self, event: dict[str, Any]) -> None:
        observer, spec = self._observer, self._spec
        match event:
            case {"event": "outdated"}:
                self._slot.close()
                self._dispatch()
            case {"event": "started"}:
                self._has_started = True
                limit = float("inf") if spec.timeout_s is None else spec.timeout_s
                self._deadline = time.monotonic() + limit
                observer.started(spec)
            case {"event": "progress"}:
                observer.progress(spec, event["done"], event["total"], event["text"])
            case {"event": "metrics"}:
                observer.metrics(spec, event["metrics"], event["step"])

    def _pass_on_cancel(self) -> None:
        if self._handle.cancel_asked.is_set() and not self._cancel_sent:
            self._cancel_sent = True
            self._worker.send({"cancel": self._spec.run_id})
            self._deadline = min(self._deadline, time.monotonic() + CANCEL_GRACE_S)

    def _relay_log(self, log: BinaryIO, *, last: bool = False) -> None:
        while data := log.read(_LOG_CHUNK):
            self._observer.log(self._spec, self._log_redactor.feed(data))
        if last:
            self._observer.log(self._spec, self._log_redactor.flush())

    def _time_is_up(self) -> RunResult:
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        if not self._has_started:
            error = RunError(
                ErrorKind.INFRASTRUCTURE,
                "WorkerStartError",
                f"the worker process did not start within {START_LIMIT_S:g} s",
                self._log_tail(),
            )
        else:
            error = RunError(
                ErrorKind.TIMEOUT,
                "TimeoutError",
                f"the run was ended after {self._spec.timeout_s:g} s; it did not stop by itself "
                f"after the soft timeout at {self._spec.soft_timeout_s:g} s",
                hint=hint_for(ErrorKind.TIMEOUT, None, self._spec),
            )
        return self._ended(RunStatus.ERROR, error)

    def _worker_died(self) -> RunResult:
        code = self._worker.wait_for_exit()
        self._slot.drop()
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        return self._ended(RunStatus.ERROR, self._death_of_worker(code))

    def _death_of_worker(self, code: int) -> RunError:
        if not self._has_started:
            return RunError(
                ErrorKind.INFRASTRUCTURE,
                "WorkerStartError",
                f"the worker process ended with code {code} before it started the run",
                self._log_tail(),
                "see the traceback; `ml-experiments doctor` checks the installation",
            )
        if code >= 0:
            text = f"the experiment ended its process with exit code {code} (os._exit or alike)"
            return RunError(ErrorKind.EXPERIMENT, "ProcessExit", text, self._log_tail())
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            text = "the worker process was killed, most often by the system for lack of memory"
            hint = hint_for(ErrorKind.HOST_OOM, None, self._spec)
            return RunError(ErrorKind.HOST_OOM, name, text, hint=hint)
        text = f"the experiment crashed its process with {name}"
        hint = "a native library crashed; the traceback shows the Python line that called it"
        return RunError(ErrorKind.EXPERIMENT, name, text, self._log_tail(), hint)

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
            results=None,
            error=error,
            artifacts=self._folder.list_artifacts(),
        )
        try:
            return self._folder.write_result(result, self._redactor)
        except OSError as e:
            unsaved = RunError(
                ErrorKind.INFRASTRUCTURE,
                type(e).__name__,
                str(e),
                hint=hint_for(ErrorKind.INFRASTRUCTURE, e, self._spec),
            )
            return dataclasses.replace(result, status=RunStatus.ERROR, error=error or unsaved)

    def _log_tail(self) -> str:
        """Return the interpreter's own crash report, or the end of what was printed."""
        with self._folder.log_file.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - _LONGEST_CRASH_REPORT))
            text = log.read().decode("utf-8", "backslashreplace")
        _, mark, report = text.rpartition(_CRASH_MARK)
        return self._redactor.redact_text(mark + report if mark else text[-2000:])
