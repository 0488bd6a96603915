"""The apps of one backend: one for each container shape and container pool, shared by its runs."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpclib
import modal

from ml_experiments.backends.modal.container.run_remote import SOURCE_FOLDER, run_remote
from ml_experiments.backends.modal.errors import platform_errors, without_modals_output
from ml_experiments.backends.modal.image import package_image
from ml_experiments.backends.modal.mounts import CACHE_MOUNT, RUNS_MOUNT, cache_volume, runs_volume
from ml_experiments.backends.modal.plan import IDLE_S
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.staging import StagedSource, stage_this_package
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.backends.pools import Pool
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.serialization.scratch import ScratchFolder

# each tag is a request, and how many an app may have is not documented
_MAX_TAGGED_RUNS = 20
# until a container whose app was stopped has ended
_MAX_END_S = 10.0
_END_POLL_S = 0.05
_Key = tuple[object, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenApp:
    """A running app, its one function, and the tags by which Modal's dashboard finds its runs."""

    app: modal.App
    function: Any
    runs: modal.Volume
    url: str
    tags: dict[str, str]
    function_id: str  # the object forgets it when the app is stopped
    stop: contextlib.ExitStack

    def tag(self, run_id: str) -> None:
        """Add a tag for a run that shares the app with the run that it is named after."""
        if len(self.tags) > _MAX_TAGGED_RUNS:
            return
        self.tags[f"run_id_{len(self.tags)}"] = run_id
        try:
            self.app.set_tags(self.tags)
        except (modal.exception.Error, grpclib.GRPCError, OSError) as e:
            logger.warning("run %s can't be found by a tag of its app: %s", run_id, e)


class AppPool:
    """Opens apps and keeps them open: runs of equal container shape share one.

    A pool of a sweep has an app of its own, with one container. When the pool is for another
    set-up, its app is stopped, so that there are never more containers than points that run.

    Args:
        cuda_toolkit: Use the image with nvcc.
    """

    def __init__(self, *, cuda_toolkit: bool) -> None:
        self._cuda_toolkit = cuda_toolkit
        self._apps: dict[_Key, OpenApp] = {}
        self._pools: dict[int, _Key] = {}  # the app of each pool
        self._lock = threading.Lock()
        self._staged_packages: dict[frozenset[Path], Path] = {}
        self._open = contextlib.ExitStack()

    def app_for(
        self,
        prepared: PreparedRun,
        source: StagedSource,
        secrets: tuple[modal.Secret, ...],
        handle: ModalRunHandle,
    ) -> OpenApp:
        """Return the app for a run; the image is built and the app started if there is none."""
        plan, pool = prepared.plan, prepared.pool
        shape = (str(plan.gpu), plan.nodes, plan.timeout_s, plan.startup_timeout_s)
        key: _Key = (*shape, source.digest, plan.pip)
        with self._lock:
            if pool is not None and pool.number is not None:
                key = (*key, pool.number, prepared.setup_key)
                if self._pools.get(pool.number) != key:
                    _wait_for_containers(self._end(self._pools.get(pool.number)))
                self._pools[pool.number] = key
            if key not in self._apps:
                self._apps[key] = self._start(prepared, source, secrets, handle)
            else:
                self._apps[key].tag(prepared.spec.run_id)
            return self._apps[key]

    def end(self, pool: Pool) -> None:
        """Stop the app of a pool."""
        with self._lock:
            if pool.number is not None:
                self._end(self._pools.pop(pool.number, None))

    def close(self) -> None:
        """Stop the apps."""
        with self._lock:
            for key in list(self._apps):
                self._end(key)
            self._open.close()

    def _end(self, key: _Key | None) -> OpenApp | None:
        app = None if key is None else self._apps.pop(key, None)
        if app is None:
            return None
        try:
            with without_modals_output():
                app.stop.close()
        except (modal.exception.Error, grpclib.GRPCError, OSError) as e:
            # must not replace the result of a run; Modal ends an app whose client is gone
            logger.warning("an app on Modal could not be stopped: %s", e)
        return app

    def _start(
        self,
        prepared: PreparedRun,
        source: StagedSource,
        secrets: tuple[modal.Secret, ...],
        handle: ModalRunHandle,
    ) -> OpenApp:
        spec, plan, pool = prepared.spec, prepared.plan, prepared.pool
        packages = package_image(cuda_toolkit=self._cuda_toolkit, pip=plan.pip)
        handle.notice("preparing the image on Modal; the first time takes some minutes")
        handle.until_cancelled(lambda: _build(packages))
        image = packages.add_local_dir(self._this_package(source.own_files), f"/root/{OWN_PACKAGE}")
        if any(source.folder.iterdir()):  # empty for an experiment of this package
            image = image.add_local_dir(source.folder, f"/root/{SOURCE_FOLDER}")
        tags, runs = _tags(spec), runs_volume()
        app = modal.App(f"ml-experiments-{spec.run_id}", tags=tags)
        function = app.function(
            image=image,
            gpu=plan.gpu.modal,
            timeout=plan.timeout_s,
            startup_timeout=plan.startup_timeout_s,
            scaledown_window=IDLE_S,
            max_containers=pool and pool.max_containers * plan.nodes,
            secrets=list(secrets),
            volumes={CACHE_MOUNT: cache_volume(), RUNS_MOUNT: runs},
            cpu=plan.resources.cpu_cores,
            memory=plan.resources.memory_mib,
            include_source=False,
        )(modal.clustered(size=plan.nodes)(run_remote) if plan.nodes > 1 else run_remote)
        stop = contextlib.ExitStack()
        with platform_errors("start the app"), without_modals_output():
            # detached: the runs go on when this process dies
            stop.enter_context(app.run(detach=True))
        url, function_id = app.get_dashboard_url(), function.object_id
        return OpenApp(app, function, runs, url, tags, function_id, stop)

    def _this_package(self, files: frozenset[Path]) -> Path:
        """Return a frozen copy of files of this package, the same for all apps that need them."""
        if files not in self._staged_packages:
            place = self._open.enter_context(ScratchFolder())
            target = Path(place) / OWN_PACKAGE
            with platform_errors("copy this package"):
                stage_this_package(target, files)
            self._staged_packages[files] = target
        return self._staged_packages[files]


def _wait_for_containers(app: OpenApp | None) -> None:
    """Wait until an app that was stopped has no container any more, as far as that is known."""
    ends_at = time.monotonic() + _MAX_END_S
    while app is not None and time.monotonic() < ends_at:
        try:
            if not modal.Function.from_id(app.function_id).get_current_stats().num_total_runners:
                return
        except (modal.exception.Error, grpclib.GRPCError, OSError):  # the app is gone
            return
        time.sleep(_END_POLL_S)


async def _build(image: modal.Image) -> None:
    """Build an image, if it isn't built yet, and show the build log."""
    builder = modal.App("ml-experiments-image-build")
    with platform_errors("build the image"), without_modals_output():
        async with builder.run():
            # on stderr: stdout may be data
            with contextlib.redirect_stdout(sys.stderr), modal.enable_output():
                await image.build.aio(builder)


def _tags(spec: RunSpec) -> dict[str, str]:
    """Return the tags by which Modal's dashboard and billing report find a run."""
    experiment = spec.experiment.rpartition(":")[2].rpartition(".")[2]
    return {
        "run_id": spec.run_id,
        "experiment": re.sub(r"[^\w.-]", "_", experiment, flags=re.A)[:63],
    }
