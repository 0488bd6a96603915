"""A place for one worker process of the local backend, with its GPU."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.execution.worker.process import WorkerProcess
from ml_experiments.runs.spec import RunSpec


class WorkerSlot:
    """Keeps a worker warm, and starts another when that one won't do."""

    def __init__(self, gpu: str | None, threads: int | None) -> None:
        self._gpu = gpu
        self._threads = threads
        self._worker: WorkerProcess | None = None
        self._experiment: str | None = None  # what its worker executed last
        self._import_paths: tuple[str, ...] = ()  # of its worker

    def suitability(self, spec: RunSpec) -> tuple[bool, ...]:
        """Return how well the slot suits a run: the greater, the less has to be done anew."""
        same_paths = self._worker is not None and self._import_paths == spec.import_paths
        return same_paths and self._experiment == spec.experiment, same_paths, self._worker is None

    def worker_for(self, spec: RunSpec, log_file: Path) -> WorkerProcess:
        """Return a live worker that imports from where this run does, started if need be."""
        if self._worker is not None:
            if self._worker.exit_code is not None:  # it died while it was idle
                self.drop()
            elif self._import_paths != spec.import_paths:
                # what it has imported under a name may be another file for this run
                self.close()
        if self._worker is None:
            self._worker = WorkerProcess(self._gpu, self._threads, log_file)
        self._experiment, self._import_paths = spec.experiment, spec.import_paths
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
