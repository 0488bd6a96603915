"""Runs experiments on this machine, each run in a process of its own."""

from __future__ import annotations

import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Unpack

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.local.options import LocalOptions
from ml_experiments.backends.local.run_handle import LocalRunHandle
from ml_experiments.config.options import read_options
from ml_experiments.errors import BackendError
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.supervisor import Supervision
from ml_experiments.execution.worker.pool import TemplatePool
from ml_experiments.execution.worker.slot import WorkerSlot
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.nvidia import list_gpus
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import PreparedRun, RunSpec

# open files of a client for each worker, and for all else that it does
_FILES_OF_WORKER = 4
_OTHER_FILES = 20


class LocalBackend(Backend):
    """Worker processes on this machine. Several share the cores evenly.

    Example:
        ```python
        from ml_experiments import LocalBackend, submit_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend(max_workers=2) as backend:
                handles = [submit_experiment(square, {"n": n}, backend=backend) for n in (1, 2, 3)]
                print([handle.result().results for handle in handles])  # [1, 4, 9]
        ```

    Args:
        **options: See `LocalOptions`.

    Raises:
        ConfigError: If an option is unknown or not valid.
    """

    name: ClassVar[str] = "local"

    def __init__(self, **options: Unpack[LocalOptions]) -> None:
        max_workers = read_options(LocalOptions, options, "LocalBackend").get("max_workers")
        gpus = list_gpus()
        count = min(max_workers or max(1, len(gpus)), _most_workers())
        threads = max(1, (os.cpu_count() or 1) // count) if count > 1 else None
        super().__init__()
        self.templates = TemplatePool(threads)
        self._slots = [WorkerSlot(gpus[i % len(gpus)] if gpus else None) for i in range(count)]
        self._free = list(self._slots)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="local-run")

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Refuse a GPU type: this machine has the GPUs that it has."""
        refuse_gpu(run.spec)
        return run

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Queue a run for the next free worker."""
        handle = LocalRunHandle(prepared.spec, folder)
        return self.start(
            handle, lambda: self._threads.submit(self._execute, handle, prepared, observer)
        )

    def close(self) -> None:
        """Wait for the queued runs, then end the workers."""
        self.wait_for_runs()  # first: a run may be submitted again
        self._threads.shutdown(wait=True)
        for slot in self._slots:
            slot.close()
        super().close()

    def _execute(
        self, handle: LocalRunHandle, prepared: PreparedRun, observer: Observer
    ) -> RunResult:
        slot = self._take_slot(prepared.setup_key)
        try:
            self.forget_fingerprint(prepared, handle.folder)  # it may have waited for the slot
            result = Supervision(
                handle.spec,
                handle.folder,
                template=prepared.template,
                slot=slot,
                setup_key=prepared.setup_key,
                observer=observer,
                hints=Hints(),
                secrets=prepared.secrets,
                cancellation=handle.cancellation,
            ).run()
        except BaseException:
            slot.drop()  # its worker may still execute the run
            raise
        finally:
            self.templates.release(prepared.template)
            with self._lock:
                self._free.append(slot)
        observer.finished(handle.spec, result)
        return result

    def _take_slot(self, setup_key: str | None) -> WorkerSlot:
        """Return the free slot that suits a run best."""
        with self._lock:
            best = max(self._free, key=lambda slot: slot.score(setup_key))
            self._free.remove(best)
        return best


def _most_workers() -> int:
    """Return for how many workers this process may open files; the other runs wait."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (limit - _OTHER_FILES) // _FILES_OF_WORKER)


def refuse_gpu(spec: RunSpec) -> None:
    """Raise when a GPU type is asked for where it can't be chosen."""
    if spec.gpu is not None:
        raise BackendError(
            f"gpu={spec.gpu!r} can't be asked for on the {spec.backend} backend, which uses this "
            "machine's own GPUs; leave it out, or use the modal backend"
        )
