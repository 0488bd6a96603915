"""Runs experiments on Modal's GPUs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.modal.app_pool import AppPool, OpenApp
from ml_experiments.backends.modal.cache import call_cache_operation
from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.backends.modal.plan import (
    complete_spec,
    list_of_texts,
    plan_container,
    remote_path,
)
from ml_experiments.backends.modal.preflight.requirements import read_requirements
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.backends.modal.request import make_request
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.backends.modal.secrets import FoundSecrets, find_secrets
from ml_experiments.errors import RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.spec import PreparedRun, RunSpec

_RUNS_AT_A_TIME = 64


class ModalBackend(Backend):
    """Containers with GPUs on Modal.

    The GPU type and the timeout are the run spec's; without them a run gets an a10g and four
    hours. Runs that need the same container share an app, and so stay warm.

    Args:
        secrets: Names of Modal secrets to attach besides the known ones that exist.
        pip: Requirements to add to the image.
        requirements: A requirements file to add to the image, as it is now.
        cpu: CPU cores to reserve.
        memory_gib: Memory to reserve.
        cuda_toolkit: Use the image with nvcc, for experiments that compile kernels.

    Raises:
        PreflightError: If the requirements file isn't readable, or has other lines.
        BackendError: If `secrets` or `pip` is not a list.
    """

    name: ClassVar[str] = "modal"

    def __init__(
        self,
        *,
        secrets: Sequence[str] = (),
        pip: Sequence[str] = (),
        requirements: str | Path | None = None,
        cpu: float | None = None,
        memory_gib: float | None = None,
        cuda_toolkit: bool = False,
    ) -> None:
        self._secret_names = list_of_texts("secrets", secrets)
        more = read_requirements(Path(requirements)) if requirements else ()
        self._pip = (*list_of_texts("pip", pip), *more)
        self._cpu, self._memory_gib = cpu, memory_gib
        self._cuda_toolkit = cuda_toolkit
        self._found: FoundSecrets | None = None
        self._is_first = True
        self._apps = AppPool(cuda_toolkit=cuda_toolkit)
        self._threads = ThreadPoolExecutor(_RUNS_AT_A_TIME, thread_name_prefix="modal-run")

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Find what would fail on Modal, in about a second and before anything is built.

        The spec gets the GPU type and the timeout that the run will have.
        """
        require_access()
        spec = dataclasses.replace(run.spec, backend_options=self._options())
        plan = plan_container(spec, self._pip, self._cpu, self._memory_gib)
        self._find_secrets()
        return dataclasses.replace(run, spec=complete_spec(spec, plan), plan=plan)

    def prefetch(self, model: str, observer: Observer, spec: RunSpec) -> None:
        """Download a model into the cache volume, in a container without a GPU."""
        observer.notice(spec, f"downloading {model} to the cache volume, without a GPU")
        name, _, revision = model.partition("@")
        call_cache_operation("pull", {"name": name, "revision": revision or None})

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Freeze the run's source and hand it over; returns at once."""
        spec, plan = prepared.spec, prepared.plan
        place = tempfile.TemporaryDirectory(prefix="ml-experiments-")
        with platform_errors("copy the run's source"):
            source = stage_source(plan.imports, Path(place.name) / "source")
        handle = ModalRunHandle(spec, folder, observer, prepared.secrets)
        for note in (*source.notes, *self._news()):
            handle.notice(note)
        handle.notice(
            f"run {spec.run_id}: {spec.gpu} for at most {spec.timeout_s:g} s, which costs at most "
            f"${plan.worst_case_usd:.2f}"
        )
        manifest = {**folder.read_manifest(), "modal": plan.to_manifest()}
        remote = dataclasses.replace(spec, experiment=remote_path(spec.experiment), import_paths=())
        request = make_request(remote, manifest, prepared.secrets)

        def open_app() -> OpenApp:
            with place:
                secrets = self._find_secrets().secrets
                return self._apps.app_for(spec, plan, source, secrets, handle)

        handle.future = self._threads.submit(handle.see_through, open_app, request)
        return handle

    def attach(self, folder: RunFolder, observer: Observer) -> RunHandle:
        """Return the handle of a run that another process, perhaps a dead one, submitted.

        Raises:
            RunFolderError: If its manifest names no call on Modal.
            AuthError: If there is no token, or Modal rejected it.
        """
        call_id = folder.read_manifest().get("modal", {}).get("function_call_id")
        if call_id is None:
            raise RunFolderError(f"{folder.path}: the run was never handed over to Modal")
        require_access()
        handle = ModalRunHandle(folder.read_spec(), folder, observer)
        handle.future = self._threads.submit(handle.collect, call_id)
        return handle

    def close(self) -> None:
        """Wait for the runs that were submitted, and stop their apps."""
        self._threads.shutdown(wait=True)
        self._apps.close()

    def _options(self) -> dict[str, Any]:
        """Return what was asked for here, as JSON, so that `runs resume` can ask for it again."""
        options = {
            "secrets": list(self._secret_names),
            "pip": list(self._pip),
            "cpu": self._cpu,
            "memory_gib": self._memory_gib,
            "cuda_toolkit": self._cuda_toolkit,
        }
        return {name: value for name, value in options.items() if value}

    def _find_secrets(self) -> FoundSecrets:
        if self._found is None:
            self._found = find_secrets(self._secret_names)
        return self._found

    def _news(self) -> tuple[str, ...]:
        """Return what to say with the first run only."""
        first, self._is_first = self._is_first, False
        return self._find_secrets().notes if first else ()
