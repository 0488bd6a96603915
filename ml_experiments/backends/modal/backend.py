"""Runs experiments on Modal's GPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpclib
import modal

from ml_experiments.backends.base import Backend, Observer, RunHandle
from ml_experiments.backends.modal.cache import call_cache_operation
from ml_experiments.backends.modal.container import run_remote as modal_app
from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.backends.modal.image import (
    CACHE_MOUNT,
    RUNS_MOUNT,
    cache_volume,
    package_image,
    runs_volume,
)
from ml_experiments.backends.modal.plan import (
    check_additions,
    check_imports,
    complete_spec,
    gpu_of,
    import_closure,
    list_of_texts,
    modal_timeout_s,
    remote_path,
    requirements_of,
)
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.requirements import read_requirements
from ml_experiments.backends.modal.preflight.staging import (
    StagedSource,
    stage_source,
    stage_this_package,
)
from ml_experiments.backends.modal.prices import worst_case_usd
from ml_experiments.backends.modal.quiet import without_modals_output
from ml_experiments.backends.modal.resources import HostResources, host_resources
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.backends.modal.secrets import FoundSecrets, find_secrets
from ml_experiments.errors import RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.spec import PreparedRun, RunSpec

# importing this package and the experiment's Python files, on a cold container
STARTUP_TIMEOUT_S = 600
_RUNS_AT_A_TIME = 64
# each is a request, and how many tags an app may have is not documented
_MOST_TAGGED_RUNS = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _AppKey:
    """What runs must have in common to share an app and its warm containers."""

    gpu: str
    timeout_s: int
    source: str
    pip: tuple[str, ...]


@dataclass(frozen=True)
class _OpenApp:
    """An app that is running, its one function, and the tags by which a person finds its runs."""

    app: modal.App
    function: Any
    url: str
    tags: dict[str, str]

    def tag(self, run_id: str) -> None:
        """Let the dashboard find a run that shares the app with the one that it is named for."""
        if len(self.tags) > _MOST_TAGGED_RUNS:
            return
        self.tags[f"run_id_{len(self.tags)}"] = run_id
        try:
            self.app.set_tags(self.tags)
        except (modal.exception.Error, grpclib.GRPCError, OSError) as e:
            logger.warning("run %s can't be found by a tag of its app: %s", run_id, e)


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
        self._apps: dict[_AppKey, _OpenApp] = {}
        self._opening = threading.Lock()
        self._is_first = True
        self._staged_package: Path | None = None
        self._open = contextlib.ExitStack()
        self._threads = ThreadPoolExecutor(_RUNS_AT_A_TIME, thread_name_prefix="modal-run")

    def check(self, spec: RunSpec) -> RunSpec:
        """Find what would fail on Modal, in about a second and before anything is built.

        Returns the spec with the GPU type and timeout that the run will have.
        """
        require_access()
        spec = dataclasses.replace(complete_spec(spec), backend_options=self._options())
        host_resources(gpu_of(spec), self._cpu, self._memory_gib)
        check_imports(import_closure(spec), check_additions(self._pip_for(spec)))
        self._find_secrets()
        return spec

    def prefetch(self, model: str, observer: Observer, spec: RunSpec) -> None:
        """Download a model into the cache volume, in a container without a GPU."""
        observer.notice(spec, f"downloading {model} to the cache volume, without a GPU")
        name, _, revision = model.partition("@")
        call_cache_operation("pull", {"name": name, "revision": revision or None})

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Freeze the run's source and hand it over; returns at once."""
        spec = prepared.spec
        place = tempfile.TemporaryDirectory(prefix="ml-experiments-")
        with platform_errors("copy the run's source"):
            source = stage_source(import_closure(spec), Path(place.name) / "source")
        handle = ModalRunHandle(spec, folder, observer, prepared.secrets)
        for note in (*source.notes, *self._news()):
            handle.notice(note)
        facts = self._facts(spec)
        handle.notice(
            f"run {spec.run_id}: {spec.gpu} for at most {spec.timeout_s:g} s, which costs at most "
            f"${facts['worst_case_usd']:.2f}"
        )
        manifest = {**folder.read_manifest(), "modal": facts}
        remote = dataclasses.replace(spec, experiment=remote_path(spec.experiment), import_paths=())
        request = modal_app.make_request(remote, manifest, prepared.secrets)

        def open_app() -> _OpenApp:
            with place:
                return self._app_for(spec, source, handle)

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
        try:
            with without_modals_output():
                self._open.close()
        except (modal.exception.Error, grpclib.GRPCError, OSError) as e:
            # it must not replace what a run's handle says; Modal ends an app whose client is gone
            logger.warning("Modal could not be told that this program is done: %s", e)

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

    def _pip_for(self, spec: RunSpec) -> tuple[str, ...]:
        return (*self._pip, *requirements_of(spec))

    def _find_secrets(self) -> FoundSecrets:
        if self._found is None:
            self._found = find_secrets(self._secret_names)
        return self._found

    def _news(self) -> tuple[str, ...]:
        """Return what to say with the first run only."""
        first, self._is_first = self._is_first, False
        return self._find_secrets().notes if first else ()

    def _facts(self, spec: RunSpec) -> dict[str, Any]:
        """Return what the manifest says of the container."""
        request, resources = gpu_of(spec), self._resources(spec)
        return {
            "gpu": request.modal,
            **dataclasses.asdict(resources),
            "worst_case_usd": worst_case_usd(
                request,
                modal_timeout_s(spec),
                resources.cpu_cores[1],
                resources.most_memory_gib,
            ),
        }

    def _resources(self, spec: RunSpec) -> HostResources:
        return host_resources(gpu_of(spec), self._cpu, self._memory_gib)

    def _this_package(self) -> Path:
        """Return a frozen copy of this package, the same for all apps."""
        if self._staged_package is None:
            place = self._open.enter_context(tempfile.TemporaryDirectory(prefix="ml-experiments-"))
            target = Path(place) / OWN_PACKAGE
            with platform_errors("copy this package"):
                stage_this_package(target)
            self._staged_package = target
        return self._staged_package

    def _app_for(self, spec: RunSpec, source: StagedSource, handle: ModalRunHandle) -> _OpenApp:
        pip = self._pip_for(spec)
        key = _AppKey(str(spec.gpu), modal_timeout_s(spec), source.digest, pip)
        with self._opening:
            if key not in self._apps:
                self._apps[key] = self._open_app(spec, source, pip, handle)
            else:
                self._apps[key].tag(spec.run_id)
            return self._apps[key]

    def _open_app(
        self, spec: RunSpec, source: StagedSource, pip: tuple[str, ...], handle: ModalRunHandle
    ) -> _OpenApp:
        packages = package_image(cuda_toolkit=self._cuda_toolkit, pip=pip)
        handle.notice("preparing the image on Modal; the first time takes some minutes")
        handle.until_cancelled(lambda: _build(packages))
        image = packages.add_local_dir(self._this_package(), f"/root/{OWN_PACKAGE}")
        if any(source.folder.iterdir()):  # nothing of the user's: an experiment of this package
            image = image.add_local_dir(source.folder, f"/root/{modal_app.SOURCE_FOLDER}")
        resources = self._resources(spec)
        tags = _tags(spec)
        app = modal.App(f"ml-experiments-{spec.run_id}", tags=tags)
        function = app.function(
            image=image,
            gpu=gpu_of(spec).modal,
            timeout=modal_timeout_s(spec),
            startup_timeout=STARTUP_TIMEOUT_S,
            secrets=list(self._find_secrets().secrets),
            volumes={CACHE_MOUNT: cache_volume(), RUNS_MOUNT: runs_volume()},
            cpu=resources.cpu_cores,
            memory=resources.memory_mib,
            include_source=False,
        )(modal_app.run_remote)
        with platform_errors("start the app"), without_modals_output():
            # detached: the runs go on when this process dies
            self._open.enter_context(app.run(detach=True))
        return _OpenApp(app, function, app.get_dashboard_url(), tags)


async def _build(image: modal.Image) -> None:
    """Build an image, if it isn't yet, and show how that goes."""
    builder = modal.App("ml-experiments-image-build")
    with platform_errors("build the image"), without_modals_output():
        async with builder.run():
            # the log is for people: where output is data, on stdout, it must not get between
            with contextlib.redirect_stdout(sys.stderr), modal.enable_output():
                await image.build.aio(builder)


def _tags(spec: RunSpec) -> dict[str, str]:
    """Return the tags by which Modal's dashboard and billing report find a run."""
    experiment = spec.experiment.rpartition(":")[2].rpartition(".")[2]
    return {
        "run_id": spec.run_id,
        "experiment": re.sub(r"[^\w.-]", "_", experiment, flags=re.A)[:63],
    }
