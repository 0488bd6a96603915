"""A place for one worker process, with its GPU."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.execution.worker.pool import Template
from ml_experiments.execution.worker.process import GuardProcess, WorkerProcess
from ml_experiments.runs.folder import RunFolder


class WorkerSlot:
    """Starts a worker for each run; keeps one whose set-up serves the next run too."""

    def __init__(self, gpu: str | None = None) -> None:
        self.gpu = gpu
        self._worker: WorkerProcess | None = None
        self._guard: GuardProcess | None = None  # of its template
        self._setup_key: str | None = None  # of its worker
        self._template: Template | None = None

    def score(self, setup_key: str | None) -> tuple[bool, ...]:
        """Return how well the slot suits a run: the greater, the less has to be done anew."""
        return setup_key is not None and self._setup_key == setup_key, self._worker is None

    def worker_for(
        self,
        template: Template,
        setup_key: str | None,
        output: Path,
        folder: RunFolder,
        secrets: tuple[str, ...],
    ) -> WorkerProcess:
        """Return a worker for a run: the warm one, unless it can't even check the config."""
        may_serve = setup_key is not None and self._template is template
        if self._worker is not None and not may_serve:
            self.close_worker()
        if self._worker is not None and self._worker.wait(0):  # it died while it was idle
            self.drop()
        if self._worker is None:
            guard = self._guard_of(template)
            self._worker = guard.start_worker(output, folder.path, secrets, self.gpu)
            self._setup_key = setup_key
        return self._worker

    def drop(self) -> None:
        """End the worker at once."""
        if self._worker is not None:
            self._worker.kill()
            self._worker, self._setup_key = None, None

    def close(self) -> None:
        """End an idle worker, and what starts workers."""
        self.close_worker()
        if self._guard is not None:
            self._guard.close()
            self._guard, self._template = None, None

    def close_worker(self) -> None:
        """End an idle worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker, self._setup_key = None, None

    def _guard_of(self, template: Template) -> GuardProcess:
        """Return what starts the workers of a template, started if need be."""
        if self._guard is None or self._template is not template or not self._guard.is_alive:
            self.close()
            self._guard, self._template = template.start_guard(), template
        return self._guard
