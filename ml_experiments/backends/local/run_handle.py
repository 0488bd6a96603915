"""The handle of a run on this machine."""

from __future__ import annotations

from concurrent.futures import Future

from ml_experiments.backends.base import RunHandle
from ml_experiments.execution.supervisor import Cancellation
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec


class LocalRunHandle(RunHandle):
    """A run that waits for a worker, executes in one, or has ended."""

    future: Future[RunResult]

    def __init__(self, spec: RunSpec, folder: RunFolder) -> None:
        super().__init__(spec, folder)
        self.cancellation = Cancellation()

    def cancel(self, *, at_once: bool = False) -> None:
        """End the run, queued or executing."""
        if at_once:
            self.cancellation.at_once.set()
        self.cancellation.requested.set()
