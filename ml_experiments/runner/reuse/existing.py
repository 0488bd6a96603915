"""The run that there is already under an id: it is followed, and not started again."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

from typing_extensions import override

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.errors import ConfigError
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.following import (
    ask_to_cancel,
    follow_log,
    is_tried_again,
    is_without_client,
)
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import PreparedRun

# what another result comes from, and what a user has asked for by name
_ASKED = ("experiment", "config.", "seed", "backend and GPU")


def find_existing(prepared: PreparedRun, backend: Backend, runs_dir: Path) -> RunFolder | None:
    """Return the folder of the run that has the id of a prepared one; None if there is none.

    Args:
        prepared: The run, for which an id was asked for.
        backend: Its backend, which may have the run though its folder is not here.
        runs_dir: Where run folders are.

    Raises:
        ConfigError: If it is another run: of another experiment, config or seed, or elsewhere.
    """
    run_id = prepared.spec.run_id
    folder = RunFolder(runs_dir / run_id)
    if not folder.path.exists() and not backend.bring_here(run_id, runs_dir):
        return None
    from ml_experiments.runner.reuse.finding import differences  # brings SQLite along

    found = [
        each for each in differences(prepared, backend, folder) if each.what.startswith(_ASKED)
    ]
    if found:
        described = ", ".join(f"{each.what} is {each.first}, not {each.second}" for each in found)
        raise ConfigError(
            f"run {run_id} exists, and is another run: {described}; choose another id"
        )
    return folder


class ExistingRunHandle(RunHandle):
    """A run that another process has started, or that has ended.

    Args:
        folder: Its folder.
        backend: The backend that it is on.
        observer: Receives its output from the beginning, and its end.
    """

    def __init__(self, folder: RunFolder, backend: Backend, observer: Observer) -> None:
        super().__init__(folder.read_spec(), folder)
        self._backend, self._observer = backend, observer
        self._attached: RunHandle | None = None
        self._cancel_asked: bool | None = None  # if so, whether at once
        if is_without_client(folder):
            self._attached = backend.attach(folder, observer)
            self.future = self._attached.future
            return
        self.future = future = Future[RunResult]()
        threading.Thread(
            target=self._follow, args=(future,), daemon=True, name=f"follow-{self.run_id}"
        ).start()

    @override
    def cancel(self, *, at_once: bool = False) -> None:
        """End the run, wherever it is seen through."""
        self._cancel_asked = at_once
        if self._attached is not None:
            self._attached.cancel(at_once=at_once)
        elif not self._has_ended() and not is_without_client(self.folder):
            ask_to_cancel(self.folder, at_once=at_once)

    def _has_ended(self) -> bool:
        return self.folder.outcome().status.has_ended and not is_tried_again(self.folder)

    def _follow(self, future: Future[RunResult]) -> None:
        try:
            result = follow_log(self.folder, lambda data: self._observer.log(self.spec, data))
            if result.status.has_ended:
                self._observer.finished(self.spec, result)
            else:  # its client is gone
                self._attached = self._backend.attach(self.folder, self._observer)
                if self._cancel_asked is not None:
                    self._attached.cancel(at_once=self._cancel_asked)
                result = self._attached.result()
        except BaseException as e:  # noqa: BLE001 - whoever waits for the run gets it
            future.set_exception(e)
        else:
            future.set_result(result)
