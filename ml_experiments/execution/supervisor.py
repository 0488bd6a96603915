"""Supervises one run in a worker process."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from ml_experiments.execution.hints import Hints
from ml_experiments.execution.logs import LogRelay, redact_log, warn_of_secrets
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.worker.death import (
    describe_death_in_run,
    describe_failed_start,
    describe_hard_timeout,
    read_log_tail,
)
from ml_experiments.execution.worker.process import START_LIMIT_S
from ml_experiments.execution.worker.slot import WorkerSlot
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec

CANCEL_GRACE_S = 5.0
_TICK_S = 0.05


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
    """Sees one run through in one slot: relays, watches the clock, notices a dead worker."""

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        *,
        observer: Observer,
        slot: WorkerSlot,
        hints: Hints,
        secrets: Iterable[str],
        cancellation: Cancellation,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._hints = hints
        self._cancellation = cancellation
        self._observer = observer
        self._slot = slot
        self._secrets = list(secrets)
        self._redactor = Redactor(self._secrets)
        self._cancel_sent = False
        self._has_started = False
        self._may_start_again = True
        self._is_redacted = False  # log.txt, by the worker

    def run(self) -> RunResult:
        """Execute the run and return its result, whatever becomes of the worker."""
        if self._cancellation.requested.is_set():
            return self._write(RunStatus.CANCELLED, None)
        with closing(
            LogRelay(self._spec, self._folder, self._observer, self._redactor)
        ) as self._relay:
            result = self._converse()
            if result.status is not RunStatus.SUCCESS:
                self._slot.drop()  # it may hold children, locked memory or a broken CUDA context
            if not self._is_redacted:
                redact_log(self._folder, self._redactor)
            self._relay.show_rest(self._cancellation.requested.is_set)
        return result

    def _converse(self) -> RunResult:
        self._dispatch()
        is_behind = False
        while True:
            try:
                for event in self._worker.read_events(0 if is_behind else _TICK_S):
                    if event["run"] != self._spec.run_id:
                        continue  # from a thread that an earlier run left behind
                    result = self._hear(event)
                    if result is not None:
                        return result
            except EOFError:
                if self._has_started or self._cancel_sent or not self._may_start_again:
                    return self._worker_died()
                self._may_start_again = False
                self._slot.drop()
                self._dispatch()
            is_behind = self._relay.show_some()
            self._pass_on_cancel()
            if self._cancellation.at_once.is_set():
                self._slot.drop()
                return self._ended(RunStatus.CANCELLED, None)
            if time.monotonic() > self._deadline:
                self._slot.drop()
                return self._time_is_up()

    def _dispatch(self) -> None:
        self._worker = self._slot.worker_for(self._spec, self._folder.log_file)
        self._worker.send(
            {
                "run": self._spec.to_dict(),
                "folder": str(self._folder.path),
                "secrets": self._secrets,
            }
        )
        if self._cancel_sent:  # to the worker before this one
            self._worker.send({"cancel": self._spec.run_id})
        else:
            # until the worker says that it has started, the limit is that of its start
            self._deadline = time.monotonic() + START_LIMIT_S

    def _hear(self, event: dict[str, Any]) -> RunResult | None:
        """Act on an event; return the result that it brings, if it does."""
        observer, spec = self._observer, self._spec
        match event:
            case {"event": "finished"}:
                return self._result_of(event)
            case {"event": "cancelled"}:
                return self._ended(RunStatus.CANCELLED, None)
            case {"event": "outdated"}:
                self._slot.close()
                self._dispatch()
            case {"event": "started"}:
                self._has_started = True
                if not self._cancel_sent:  # else it has to end before long
                    limit = float("inf") if spec.timeout_s is None else spec.timeout_s
                    self._deadline = time.monotonic() + limit
                observer.started(spec)
            case {"event": "progress"}:
                observer.progress(spec, event["done"], event["total"], event["text"])
            case {"event": "metrics"}:
                observer.metrics(spec, event["metrics"], event["step"])
        return None

    def _result_of(self, finished: dict[str, Any]) -> RunResult:
        self._is_redacted = True
        if "not_redacted" in finished:
            warn_of_secrets(self._folder, finished["not_redacted"])
        if "result" in finished:  # the worker could not write it
            return RunResult.from_dict(finished["result"], run_dir=self._folder.path)
        return self._folder.read_result()

    def _pass_on_cancel(self) -> None:
        if self._cancellation.requested.is_set() and not self._cancel_sent:
            self._cancel_sent = True
            self._worker.send({"cancel": self._spec.run_id})
            self._deadline = min(self._deadline, time.monotonic() + CANCEL_GRACE_S)

    def _time_is_up(self) -> RunResult:
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        if self._has_started:
            return self._ended(RunStatus.ERROR, describe_hard_timeout(self._spec, self._hints))
        what = f"did not start within {START_LIMIT_S:g} s"
        return self._ended(RunStatus.ERROR, describe_failed_start(what, self._log_tail()))

    def _worker_died(self) -> RunResult:
        code = self._worker.wait_for_exit()
        self._slot.drop()
        if self._cancel_sent:
            return self._ended(RunStatus.CANCELLED, None)
        if self._has_started:
            error = describe_death_in_run(code, self._spec, self._log_tail(), self._hints)
        else:
            what = f"ended with code {code} before it started the run"
            error = describe_failed_start(what, self._log_tail())
        return self._ended(RunStatus.ERROR, error)

    def _log_tail(self) -> str:
        return read_log_tail(self._folder, self._redactor)

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
        except OSError as e:
            unsaved = RunError(
                ErrorKind.INFRASTRUCTURE,
                type(e).__name__,
                str(e),
                hint=self._hints.hint_for(ErrorKind.INFRASTRUCTURE, e, self._spec),
            )
            return dataclasses.replace(result, status=RunStatus.ERROR, error=error or unsaved)
