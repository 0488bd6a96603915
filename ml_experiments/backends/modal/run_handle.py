"""One run on Modal, followed from this machine: its logs live, its result and files after."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

import modal

from ml_experiments.backends.base import RunHandle
from ml_experiments.backends.modal.billing.cost import cost_of
from ml_experiments.backends.modal.detached.volume_folder import ask_to_cancel
from ml_experiments.backends.modal.errors import describe_briefly, platform_errors, require_access
from ml_experiments.backends.modal.fetching import (
    fetch_run_folder,
    has_result_there,
    read_manifest_there,
)
from ml_experiments.backends.modal.logs import LiveLogs
from ml_experiments.backends.modal.mounts import RUNS_VOLUME, runs_volume
from ml_experiments.backends.modal.outcome import describe_lost_call
from ml_experiments.errors import AuthError, BackendError, RunNotCollectedError
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest, ModalPlace
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.result import Attempt, ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec

# what only Modal itself raises at the end of a call
_ENDINGS = (
    modal.exception.FunctionTimeoutError,
    modal.exception.InternalFailure,
    modal.exception.OutputExpiredError,
    modal.exception.RemoteError,
)
_ASKED_AGAIN = 3
_ASKED_EVERY_S = 1.0
_MAX_AWAY_S = 120.0


class OpenApp(Protocol):
    """An app that is running, its function, and its page on Modal's dashboard."""

    @property
    def function(self) -> Any:
        """Modal's function around `run_remote`."""

    @property
    def runs(self) -> modal.Volume:
        """The volume of run folders that its containers have."""

    @property
    def url(self) -> str:
        """Where a person sees the app."""


class ModalRunHandle(RunHandle):
    """A run that was handed to Modal."""

    future: Future[RunResult]

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        observer: Observer,
        secrets: Iterable[str] = (),
        controller: str | None = None,
    ) -> None:
        super().__init__(spec, folder)
        self._controller = controller  # the call that this is done in
        self._has_controller = False
        self._observer = observer
        self._redactor = Redactor((*secret_values(), *secrets))
        self._call: Any = None
        self._volume = runs_volume()
        self._cancel_asked = threading.Event()
        self._at_once = False
        self._stop: Callable[[], object] | None = None  # ends what `until_cancelled` waits for
        self._lock = threading.Lock()

    def cancel(self, *, at_once: bool = False) -> None:
        """End the run: by an interrupt in its container, or with the container."""
        with self._lock:
            self._cancel_asked.set()
            self._at_once = self._at_once or at_once
            call = self._call
            if self._stop is not None:
                self._stop()
        if call is not None:
            with platform_errors("cancel the run"):
                if self._has_controller:  # which cancels the attempt
                    ask_to_cancel(self.run_id, at_once=at_once)
                else:
                    call.cancel(terminate_containers=at_once)

    def notice(self, text: str) -> None:
        """Tell the observer something."""
        self._observer.notice(self.spec, text)

    def until_cancelled(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that takes long, such as to build an image, unless the run is cancelled.

        Raises:
            asyncio.CancelledError: If it is, or was before.
        """

        async def watched() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work())
            with self._lock:
                self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
                if self._cancel_asked.is_set():
                    task.cancel()
            try:
                await task
            finally:
                with self._lock:
                    self._stop = None

        asyncio.run(watched())

    def see_through(self, open_app: Callable[[], OpenApp], request: dict[str, Any]) -> RunResult:
        """Start the run and see it to its end; for the backend's thread."""
        try:
            app = open_app()
            self._volume = app.runs  # which needs not be looked up again
            # from here on it may go on there, whatever becomes of this process
            self._note_place(app_url=app.url)
            with self._lock:
                if not self._cancel_asked.is_set():
                    with platform_errors("start the run"):
                        self._call = app.function.spawn(request)
        except asyncio.CancelledError:
            return self._end(RunStatus.CANCELLED, None)
        except Exception as e:
            # nothing ran; the folder says so too, for those who look at it later
            kind = ErrorKind.AUTH if isinstance(e, AuthError) else ErrorKind.INFRASTRUCTURE
            self._end(RunStatus.ERROR, RunError(kind, type(e).__name__, str(e)))
            raise
        if self._call is None:
            return self._end(RunStatus.CANCELLED, None)
        call_id = self._call.object_id
        self._note_place(function_call_id=call_id)
        self.notice(f"run {self.run_id} on Modal: {app.url} (call {call_id})")
        return self._follow(is_new=True)

    def collect(self) -> RunResult:
        """See a run to its end that another process started; for the backend's thread."""
        known = self.folder.read_manifest()
        is_noted = known.call_id is not None
        if not is_noted:  # only the volume knows the call, once the run has begun
            known = self._wait_for_begin()
        maker = None if known.controller == self._controller else known.controller
        self._has_controller = maker is not None
        call_id = maker or _call_of(known)
        assert call_id is not None
        with platform_errors("find the run"):
            call = modal.FunctionCall.from_id(call_id)
        if not is_noted:
            self._note_place(**{"function_call_id" if maker is None else "controller": call_id})
        with self._lock:
            self._call = call
        if self._cancel_asked.is_set():  # before the call was known
            self.cancel(at_once=self._at_once)
        return self._follow(is_new=False)

    def _wait_for_begin(self) -> Manifest:
        is_told = False
        while True:
            with platform_errors("look for the run"):
                theirs = read_manifest_there(
                    self._volume, self.run_id, self.folder.read_manifest(), self._controller
                )
            if theirs is not None and _call_of(theirs) is not None:
                return theirs
            if theirs is None or self._cancel_asked.is_set():
                raise RunNotCollectedError(f"run {self.run_id} has not begun on Modal")
            if not is_told:
                self.notice("the run has not begun on Modal yet; waiting for it")
                is_told = True
            self._cancel_asked.wait(_ASKED_EVERY_S)

    def _follow(self, *, is_new: bool) -> RunResult:
        """Wait for the end of the call, which this process has made if it is new."""
        logs = LiveLogs(
            self._call,
            self.spec,
            self.folder,
            self._observer,
            self._redactor,
            self._note_start,
            is_written=is_new,
        )
        logs.start()
        try:
            status, error, result = self._wait(is_new=is_new)
        finally:
            logs.finish()
        return self._bring_here(status, error, result)

    def recover(self) -> bool:
        """Bring the run's result and files here; return whether there is a result."""
        with platform_errors("look for the result of the run"):
            is_there = has_result_there(self._volume, self.folder, self._controller)
        if is_there:
            self._bring_here(RunStatus.ERROR, None, None)
        return is_there

    def complete(self, records: dict[str, dict[str, Any]]) -> None:
        """Add what only a client knows, such as the cost, to a result that was brought here.

        Args:
            records: See `Fetched`.
        """
        self._take_over(records)
        self._finish(self.folder.read_result())

    def _bring_here(
        self, status: RunStatus, error: RunError | None, result: RunResult | None
    ) -> RunResult:
        """Fetch the run folder, and write the result as it is known here."""
        try:
            with platform_errors("bring the files of the run here"):
                fetched = fetch_run_folder(
                    self._volume,
                    self.run_id,
                    self.folder.path,
                    controller=self._controller,
                    has_result=result is not None,
                )
        except BackendError as e:
            raise RunNotCollectedError(
                f"run {self.run_id} ended with status {status}. {e}. They are safe on the volume "
                f"{RUNS_VOLUME}; get them with: ml-experiments runs follow {self.run_id}"
            ) from e
        if fetched.left_behind:
            self.notice(
                f"{len(fetched.left_behind)} files could not be read from the volume {RUNS_VOLUME} "
                f"and stay there: {', '.join(fetched.left_behind[:3])}"
            )
        self._take_over(fetched.records)
        if result is None and self.folder.result_file.exists():
            result = self.folder.read_result()
        return self._end(status, error) if result is None else self._finish(result)

    def _note_start(self) -> None:
        """Say in the manifest that the run is no longer pending."""
        place = self.folder.read_manifest().modal
        if place is None or place.started_at is None:  # else this is a rerun
            self._update_place(started_at=time.time())

    def _note_place(self, **facts: str) -> None:
        try:
            self._update_place(**facts)
        except OSError as e:  # a full disk: the run goes on, and so does this client
            self.notice(f"where the run is was not recorded, so keep this client: {e}")

    def _update_place(self, controller: str | None = None, **facts: Any) -> None:
        def change(manifest: Manifest) -> Manifest:
            place = dataclasses.replace(manifest.modal or ModalPlace(), **facts)
            controlled = controller or manifest.controller
            return dataclasses.replace(manifest, modal=place, controller=controlled)

        self.folder.change_manifest(change, self._redactor)

    def _take_over(self, records: dict[str, dict[str, Any]]) -> None:
        """Add what only the container knew: who it was, and what is a Modal secret's value.

        Of the attempts of a controller, this client doesn't know where they were.
        """
        known = self.folder.read_manifest()
        if "manifest.json" in records:
            theirs = parse_record(Manifest, records["manifest.json"])
            place = known.modal if known.controller is None else theirs.modal
            theirs = dataclasses.replace(theirs, modal=place, controller=known.controller)
            attempts = tuple(self._with_cost(a, theirs) for a in theirs.earlier_attempts)
            theirs = dataclasses.replace(theirs, earlier_attempts=attempts)
            self.folder.write_manifest(theirs, self._redactor)
        if "spec.json" in records:
            spec = self.folder.read_spec()
            recorded = parse_record(RunSpec, records["spec.json"])
            if known.controller is not None:
                self.spec = dataclasses.replace(self.spec, gpu=recorded.gpu)
            safe = dataclasses.replace(
                spec,
                config=_redacted_like(recorded.config, spec.config),
                name=_redacted_like(recorded.name, spec.name),
                tags=_redacted_like(recorded.tags, spec.tags),
                gpu=self.spec.gpu,
            )
            if safe != spec:
                self.folder.write_spec(safe, self._redactor)

    def _with_cost(self, attempt: Attempt, manifest: Manifest) -> Attempt:
        """Add the cost to an attempt that was preempted: containers don't know prices."""
        if attempt.kind is not ErrorKind.PREEMPTED or attempt.seconds is None:
            return attempt
        timings = {"total_s": attempt.seconds}
        if attempt.container_s is not None:
            timings["container_s"] = attempt.container_s
        executed = RunResult(self.run_id, attempt.status, "", timings=timings)
        cost = cost_of(executed, self.spec, manifest)
        return dataclasses.replace(
            attempt,
            cost_usd=attempt.cost_usd or cost.get("estimate_usd"),
            at_most_usd=attempt.at_most_usd or cost.get("at_most_usd"),
        )

    def _wait(self, *, is_new: bool) -> tuple[RunStatus, RunError | None, RunResult | None]:
        """Wait for the call; return its result, or how it ended without one."""
        try:
            data = self._output(is_new=is_new)
        except RunNotCollectedError:
            raise
        except Exception as e:  # noqa: BLE001 - whatever it is, the run has ended by it
            if self._cancel_asked.is_set() or self._is_cancelled_there(e):
                return RunStatus.CANCELLED, None, None
            return RunStatus.ERROR, describe_lost_call(e, self.spec), None
        result = RunResult.from_dict(data, run_dir=self.folder.path)
        return result.status, result.error, result

    def _output(self, *, is_new: bool) -> Any:
        """Return what the call returned, or raise what ended it."""
        # without a timeout, the client waits for ever for a result that has expired
        timeout_s: float | None = None if is_new else 0.0
        while True:
            try:
                return self._call.get(timeout=timeout_s)
            except modal.exception.OutputExpiredError:
                raise
            except TimeoutError as e:
                if timeout_s is None and self._is_the_calls_own(e):
                    raise
                timeout_s = None
            except Exception as e:
                if isinstance(e, _ENDINGS) or self._is_the_calls_own(e):
                    raise
                timeout_s = 0.0

    def _is_the_calls_own(self, error: Exception) -> bool:
        """Return whether it ended the call, and not only the connection to Modal.

        The exception doesn't tell, for a container may fail by one of any type. So the call is
        asked about again, if there is anyone to ask.
        """
        if isinstance(error, TimeoutError) and error.errno is None:
            return True  # no socket's, and nothing here waits for a limited time
        for _ in range(_ASKED_AGAIN):
            self._wait_for_modal(error)
            try:
                self._call.get(timeout=0)
            except TimeoutError:
                return False  # it goes on
            except Exception:  # noqa: BLE001 - the call's own, or lost once more
                time.sleep(_ASKED_EVERY_S)
            else:
                return False  # it has returned something
        return True

    def _is_cancelled_there(self, error: Exception) -> bool:
        """Return whether another client, or a person in Modal's dashboard, has ended the call."""
        if type(error) is not modal.exception.RemoteError:
            return False
        try:
            inputs = self._call.get_call_graph()
        except Exception:  # noqa: BLE001 - it only says more about an error that there is
            return False
        return any(
            each.function_call_id == self._call.object_id and each.status.name == "TERMINATED"
            for each in inputs
        )

    def _wait_for_modal(self, error: Exception) -> None:
        """Wait until Modal can be reached again.

        Raises:
            RunNotCollectedError: If it can't for too long, or the run is to be cancelled.
        """
        ends_at, is_told = time.monotonic() + _MAX_AWAY_S, False
        while True:
            try:
                return require_access()
            except BackendError as e:
                lost = f"the connection to Modal was lost ({describe_briefly(error)})"
                if time.monotonic() > ends_at or self._cancel_asked.is_set():
                    raise RunNotCollectedError(
                        f"{lost}; the run goes on there. Collect it with: "
                        f"ml-experiments runs follow {self.run_id}"
                    ) from e
                if not is_told:
                    self.notice(f"{lost}; the run goes on there, and the connection is tried again")
                    is_told = True
                time.sleep(_ASKED_EVERY_S)

    def _finish(self, result: RunResult) -> RunResult:
        """Write the result as the client knows it: with its own class path and the cost."""
        if self.spec.nodes > 1:  # the others' files came to the volume after node 0's list
            result = dataclasses.replace(result, artifacts=self.folder.list_artifacts())
        result = dataclasses.replace(
            result,
            experiment_class=self.spec.experiment,
            run_dir=self.folder.path,
            cost={**result.cost, **cost_of(result, self.spec, self.folder.read_manifest())},
        )
        result = self.folder.write_result(result, self._redactor)
        self._observer.finished(self.spec, result)
        return result

    def _end(self, status: RunStatus, error: RunError | None) -> RunResult:
        """Write the result of a run that left none."""
        return self._finish(
            RunResult(
                run_id=self.run_id,
                status=status,
                experiment_class=self.spec.experiment,
                error=error,
                artifacts=self.folder.list_artifacts(),
            )
        )


def _call_of(manifest: Manifest) -> str | None:
    return None if manifest.modal is None else manifest.modal.function_call_id


def _redacted_like(recorded: Any, own: Any) -> Any:
    """Return JSON of one's own, without the texts that were redacted in the recorded one."""
    match recorded, own:
        case dict(), dict():
            return {key: _redacted_like(recorded.get(key), value) for key, value in own.items()}
        case list(), list() if len(recorded) == len(own):
            return [_redacted_like(*pair) for pair in zip(recorded, own, strict=True)]
        case str(), str() if Redactor.MARK in recorded:
            return recorded
    return own
