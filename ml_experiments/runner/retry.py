"""Runs in several attempts: again after what can pass by itself, or on with more memory."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
from collections.abc import Callable
from concurrent.futures import Future

import tenacity
from typing_extensions import override

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend, FinishedRunHandle, RunHandle
from ml_experiments.errors import (
    BackendError,
    BudgetError,
    Error,
    RunFolderError,
    RunNotCollectedError,
)
from ml_experiments.execution.observer import GuardedObserver, Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.attempts import (
    begin_again,
    forget_other_source,
    prepare_recorded,
    reserve_again,
)
from ml_experiments.runner.budget.reserving import (
    give_back_unstarted,
    release,
    settle_at_end,
)
from ml_experiments.runner.escalation import with_more_memory
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec

_FIRST_WAIT_S = 1.0
_MAX_WAIT_S = 60.0
# the types of such errors: a process that was killed, a container that Modal lost
_LOST = ("SIGKILL", "InternalFailure")


def can_pass(error: RunError, *, has_progressed: Callable[[], bool]) -> bool:
    """Return whether an attempt that ended so is worth another one.

    Args:
        error: What the attempt ended with.
        has_progressed: Tells whether the attempt has written a checkpoint.
    """
    if error.kind is ErrorKind.TIMEOUT:
        return has_progressed()
    # what was killed can't say why; lack of memory is only the likeliest cause
    is_lost = error.kind is ErrorKind.HOST_OOM and error.type in _LOST
    return is_lost or error.kind in (ErrorKind.INFRASTRUCTURE, ErrorKind.PREEMPTED)


class _OneRun(GuardedObserver):
    """Passes on what happens in the attempts at a run, but not that one of them has ended."""

    @override
    def finished(self, spec: RunSpec, result: RunResult) -> None:
        pass

    def run_finished(self, spec: RunSpec, result: RunResult) -> None:
        """Pass on that the run has ended."""
        super().finished(spec, result)


def submit_with_retries(
    submit: Callable[[Observer], RunHandle],
    prepared: PreparedRun,
    folder: RunFolder,
    backend: Backend,
    observer: Observer,
) -> RunHandle:
    """Hand a run over; if its spec allows further attempts, its folder is locked until the last.

    Args:
        submit: Submits the first attempt, with an observer.
        prepared: The run.
        folder: Its folder.
        backend: Where it executes.
        observer: Sees all attempts as one run.
    """
    if not prepared.spec.may_run_again:
        return submit(observer)
    lock = RunLock.take(folder)
    try:
        handle = with_retries(submit, prepared, backend, observer)
    except BaseException:
        lock.release()
        raise
    handle.when_ended(lock.release)
    return handle


def go_on_with_attempts(
    folder: RunFolder, prepared: PreparedRun, backend: Backend, observer: Observer
) -> RunHandle:
    """Go on with the attempts at a run as another process has left them; without any, begin.

    Args:
        folder: The run folder.
        prepared: The run.
        backend: Where it executes, whose runs outlive that process.
        observer: Sees all attempts as one run.
    """
    spec, one_run = prepared.spec, _OneRun(observer)
    attempt: RunHandle | None = None  # none was handed over, or Modal has nothing of it
    if folder.result_file.exists():
        attempt = FinishedRunHandle(spec, folder, folder.read_result())
    else:
        try:
            attempt = backend.attach(folder, one_run)
        except RunFolderError:
            give_back_unstarted(folder)
    handle = RetriedRunHandle(attempt, prepared, folder, backend, one_run)
    earlier = folder.read_manifest().earlier_attempts
    no_retries = (ErrorKind.PREEMPTED, ErrorKind.CUDA_OOM)
    handle.retries_left -= sum(each.kind not in no_retries for each in earlier)
    return backend.start(handle, handle.begin)


def with_retries(
    submit: Callable[[Observer], RunHandle],
    prepared: PreparedRun,
    backend: Backend,
    observer: Observer,
) -> RunHandle:
    """Submit the first attempt at a run; return a handle that makes the others, if any.

    Args:
        submit: Submits it, with an observer.
        prepared: The run, whose folder is locked if its spec allows further attempts.
        backend: Where it executes.
        observer: Sees all attempts as one run.
    """
    if not prepared.spec.may_run_again:
        return submit(observer)
    one_run = _OneRun(observer)
    first = submit(one_run)
    handle = RetriedRunHandle(first, prepared, first.folder, backend, one_run)
    return backend.start(handle, handle.begin)


class RetriedRunHandle(RunHandle):
    """A run in as many attempts as it takes; a thread of its own sees to them.

    Args:
        first: The first attempt, which has been submitted; None if this submits it.
        prepared: The run.
        folder: Its folder, for that attempt.
        backend: Where the run executes.
        observer: Sees all attempts as one run.
    """

    def __init__(
        self,
        first: RunHandle | None,
        prepared: PreparedRun,
        folder: RunFolder,
        backend: Backend,
        observer: _OneRun,
    ) -> None:
        super().__init__(prepared.spec, folder)
        self.retries_left = prepared.spec.retries
        self._attempt = first
        self._secrets = prepared.secrets
        self._budget, self._pool = prepared.budget, prepared.pool
        self._backend = backend
        self._observer = observer
        self._has_climbed = False  # since the attempt before
        self._undo: Callable[[], RunResult] | None = None  # of what the next attempt has changed
        self._opened = contextlib.ExitStack()  # backends besides the caller's
        self._is_over_cap = False
        self._failure: BackendError | None = None
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    def begin(self) -> Future[RunResult]:
        """Start the thread; return what will be known of the run in the end."""
        future: Future[RunResult] = Future()
        threading.Thread(
            target=self._see_through, args=(future,), daemon=True, name=f"retry-{self.run_id}"
        ).start()
        return future

    @property
    @override
    def status(self) -> RunStatus:
        status = super().status
        return RunStatus.PENDING if status.has_ended and not self.done() else status

    def cancel(self, *, at_once: bool = False) -> None:
        """End the run: by an interrupt that the experiment sees, or at once."""
        with self._lock:
            self._cancelled.set()
            attempt = self._attempt
        if attempt is not None:
            attempt.cancel(at_once=at_once)

    def _see_through(self, future: Future[RunResult]) -> None:
        series = tenacity.Retrying(
            retry=tenacity.retry_if_result(self._begin_next),
            wait=self._wait_s,
            sleep=tenacity.sleep_using_event(self._cancelled),
            before_sleep=self._announce,
        )
        try:
            with self._opened:
                result = series(self._execute)
            if self._failure is not None:
                raise self._failure
        except BaseException as e:  # noqa: BLE001 - whoever waits for the run gets it
            future.set_exception(e)
        else:
            self._observer.run_finished(self.spec, result)
            future.set_result(result)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        if self._has_climbed:
            return 0.0
        back_off = tenacity.wait_exponential(_FIRST_WAIT_S, _MAX_WAIT_S)
        return (back_off + tenacity.wait_random(0, _FIRST_WAIT_S))(state)

    def _execute(self) -> RunResult:
        """See one attempt to its end; return its outcome."""
        self._failure = None
        try:
            attempt = self._attempt or self._submit()
            return self._write(RunStatus.CANCELLED) if attempt is None else attempt.result()
        except RunNotCollectedError:  # it goes on, or has ended there
            raise
        except BudgetError as e:
            self._is_over_cap = True
            if self._undo is None:  # another process has begun the attempt
                return self._write(
                    RunStatus.ERROR, RunError(ErrorKind.CONFIG, "BudgetError", str(e))
                )
            self._observer.notice(self.spec, f"run {self.run_id} gets no further attempt: {e}")
            return self._undo()
        except BackendError as e:  # it could not be started; its folder says so
            self._failure = e
            return self.folder.outcome()

    def _submit(self) -> RunHandle | None:
        """Hand the attempt over that has begun; None if it was cancelled before."""
        if self._cancelled.is_set():
            return None
        reservation = None
        try:
            earlier = self.folder.read_manifest().earlier_attempts
            prepared = prepare_recorded(self.spec, self._backend)
            prepared = reserve_again(
                dataclasses.replace(prepared, budget=self._budget, pool=self._pool),
                self.folder,
                earlier,
                self._backend,
                has_begun=True,
            )
            reservation = prepared.reservation
            if prepared.spec != self.spec:  # a backend's defaults
                self.spec = prepared.spec
                self.folder.write_spec(self.spec, Redactor(self._secrets))
            forget_other_source(prepared, self.folder)
            attempt = self._backend.submit(prepared, self.folder, self._observer)
            settle_at_end(attempt, reservation)
        except BudgetError:
            raise
        except Exception as e:
            release(reservation)
            kind = ErrorKind.INFRASTRUCTURE if isinstance(e, BackendError) else ErrorKind.CONFIG
            self._write(RunStatus.ERROR, RunError(kind, type(e).__name__, str(e)))
            raise
        with self._lock:
            self._attempt = attempt
        if self._cancelled.is_set():
            attempt.cancel()
        return attempt

    def _begin_next(self, outcome: RunResult) -> bool:
        """Begin the next attempt if there is to be one; return whether there is."""
        error = outcome.error
        is_last = self._cancelled.is_set() or self._is_over_cap
        if error is None or outcome.status is not RunStatus.ERROR or is_last:
            return False
        self._undo = self._undoing(outcome)
        larger = with_more_memory(self.spec, error, self.folder.read_manifest())
        self._has_climbed = larger is not None
        if larger is not None:
            if not self._move_to(larger):
                return False
        elif not self._may_retry(error):
            return False
        with self._lock:
            self._attempt = None
        self.folder = begin_again(self.spec, self.folder, outcome, self._secrets)
        return True

    def _undoing(self, outcome: RunResult) -> Callable[[], RunResult]:
        """Return what makes the run one that has ended again, if it gets no further attempt."""
        spec, manifest = self.spec, self.folder.read_manifest()

        def undo() -> RunResult:
            folder, redactor = RunFolder(self.folder.path), Redactor(self._secrets)
            folder.write_spec(spec, redactor)
            folder.write_manifest(manifest, redactor)
            self.spec, self.folder = spec, RunFolder(folder.path, manifest.attempt)
            return self.folder.write_result(outcome, redactor)

        return undo

    def _may_retry(self, error: RunError) -> bool:
        if not can_pass(error, has_progressed=self._has_progressed):
            return False
        if error.kind is ErrorKind.PREEMPTED:
            return True
        self.retries_left -= 1
        return self.retries_left >= 0

    def _move_to(self, spec: RunSpec) -> bool:
        """Let the run go on with another spec; return whether it can."""
        if spec.backend != self.spec.backend:
            try:
                backend = self._opened.enter_context(open_backend(spec.backend))
                backend.take_over(self.folder)
            except Error as e:
                self._observer.notice(self.spec, f"run {self.run_id} can't go on on Modal: {e}")
                return False
            self._backend = backend
        self.spec = spec
        return True

    def _has_progressed(self) -> bool:
        began_at = self.folder.read_manifest().began_at
        if began_at is None:
            return False
        newest = self._backend.newest_checkpoint(self.folder)
        return newest is not None and newest >= datetime.datetime.fromisoformat(began_at)

    def _announce(self, state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        error: RunError = state.outcome.result().error
        where = f" on {self.spec.gpu}" if self._has_climbed else ""
        number = len(self.folder.read_manifest().earlier_attempts) + 1
        self._observer.notice(
            self.spec,
            f"run {self.run_id}: {error.type} ({error.kind}); attempt {number}{where} in "
            f"{state.upcoming_sleep:.0f} s",
        )

    def _write(self, status: RunStatus, error: RunError | None = None) -> RunResult:
        """Write how an attempt ended that never executed."""
        result = RunResult(
            self.run_id,
            status,
            self.spec.experiment,
            error=error,
            artifacts=self.folder.list_artifacts(),
        )
        return self.folder.write_result(result, Redactor(self._secrets))
