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
from ml_experiments.execution.launch.preparing import check_packages, with_processes
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.supervisor import Supervision
from ml_experiments.execution.worker.pool import TemplatePool, WorkerSlot
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
        self._gpus = gpus = list_gpus()
        count = min(max_workers or max(1, len(gpus)), _most_workers())
        threads = max(1, (os.cpu_count() or 1) // count) if count > 1 else None
        super().__init__()
        self.templates = TemplatePool(threads)
        self._slots = [WorkerSlot(gpus[i % len(gpus)] if gpus else None) for i in range(count)]
        self._free = list(self._slots)
        self._freed = threading.Condition()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="local-run")

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Refuse a GPU type: this machine has the GPUs that it has."""
        refuse_gpu(run.spec)
        prepared = with_processes(run, len(self._gpus))
        check_packages(run.spec.launch)
        return prepared

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
        slots = self._take_slots(prepared)
        # ranks have all the GPUs of the slots, by a worker of their own
        ranks = prepared.spec.nproc_per_node
        slot = slots[0] if ranks is None else WorkerSlot(self._gpus_for(slots, ranks))
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
            if slot is not slots[0]:
                slot.close()
            self.templates.release(prepared.template)
            with self._freed:
                self._free += slots
                self._freed.notify_all()
        observer.finished(handle.spec, result)
        return result

    def _take_slots(self, prepared: PreparedRun) -> list[WorkerSlot]:
        """Return free slots that suit a run best: one, or one for each GPU of its ranks."""
        count = 1
        if prepared.spec.launch is not None and self._gpus:
            count = min(prepared.spec.nproc_per_node or 1, len(self._slots))
        with self._freed:
            self._freed.wait_for(lambda: len(self._free) >= count)
            self._free.sort(key=lambda slot: slot.score(prepared.setup_key), reverse=True)
            taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _gpus_for(self, slots: list[WorkerSlot], count: int) -> str | None:
        """Return the GPUs for some ranks: those of their slots, if these are enough."""
        own = list(dict.fromkeys(slot.gpu for slot in slots if slot.gpu is not None))
        gpus = own if len(own) >= count else list(self._gpus[:count])
        return ",".join(gpus) or None


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
