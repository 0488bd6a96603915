"""The apps of one backend: one for each container shape, shared by its runs."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpclib
import modal

from ml_experiments.backends.modal.container.run_remote import SOURCE_FOLDER, run_remote
from ml_experiments.backends.modal.errors import platform_errors, without_modals_output
from ml_experiments.backends.modal.image import package_image
from ml_experiments.backends.modal.mounts import CACHE_MOUNT, RUNS_MOUNT, cache_volume, runs_volume
from ml_experiments.backends.modal.plan import IDLE_S, ContainerPlan
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.staging import StagedSource, stage_this_package
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.scratch import ScratchFolder

# each tag is a request, and how many an app may have is not documented
_MAX_TAGGED_RUNS = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenApp:
    """A running app, its one function, and the tags by which Modal's dashboard finds its runs."""

    app: modal.App
    function: Any
    url: str
    tags: dict[str, str]

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

    Args:
        secrets: The Modal secrets to attach.
        cuda_toolkit: Use the image with nvcc.
    """

    def __init__(self, *, cuda_toolkit: bool) -> None:
        self._cuda_toolkit = cuda_toolkit
        self._apps: dict[tuple[object, ...], OpenApp] = {}
        self._lock = threading.Lock()
        self._staged_packages: dict[frozenset[Path], Path] = {}
        self._open = contextlib.ExitStack()

    def app_for(
        self,
        spec: RunSpec,
        plan: ContainerPlan,
        source: StagedSource,
        secrets: tuple[modal.Secret, ...],
        handle: ModalRunHandle,
    ) -> OpenApp:
        """Return the app for a run; the image is built and the app started if there is none."""
        key = (str(plan.gpu), plan.timeout_s, plan.startup_timeout_s, source.digest, plan.pip)
        with self._lock:
            if key not in self._apps:
                self._apps[key] = self._start(spec, plan, source, secrets, handle)
            else:
                self._apps[key].tag(spec.run_id)
            return self._apps[key]

    def close(self) -> None:
        """Stop the apps."""
        try:
            with without_modals_output():
                self._open.close()
        except (modal.exception.Error, grpclib.GRPCError, OSError) as e:
            # must not replace the result of a run; Modal ends an app whose client is gone
            logger.warning("the apps on Modal could not be stopped: %s", e)

    def _start(
        self,
        spec: RunSpec,
        plan: ContainerPlan,
        source: StagedSource,
        secrets: tuple[modal.Secret, ...],
        handle: ModalRunHandle,
    ) -> OpenApp:
        packages = package_image(cuda_toolkit=self._cuda_toolkit, pip=plan.pip)
        handle.notice("preparing the image on Modal; the first time takes some minutes")
        handle.until_cancelled(lambda: _build(packages))
        image = packages.add_local_dir(self._this_package(source.own_files), f"/root/{OWN_PACKAGE}")
        if any(source.folder.iterdir()):  # empty for an experiment of this package
            image = image.add_local_dir(source.folder, f"/root/{SOURCE_FOLDER}")
        tags = _tags(spec)
        app = modal.App(f"ml-experiments-{spec.run_id}", tags=tags)
        function = app.function(
            image=image,
            gpu=plan.gpu.modal,
            timeout=plan.timeout_s,
            startup_timeout=plan.startup_timeout_s,
            scaledown_window=IDLE_S,
            secrets=list(secrets),
            volumes={CACHE_MOUNT: cache_volume(), RUNS_MOUNT: runs_volume()},
            cpu=plan.resources.cpu_cores,
            memory=plan.resources.memory_mib,
            include_source=False,
        )(run_remote)
        with platform_errors("start the app"), without_modals_output():
            # detached: the runs go on when this process dies
            self._open.enter_context(app.run(detach=True))
        return OpenApp(app, function, app.get_dashboard_url(), tags)

    def _this_package(self, files: frozenset[Path]) -> Path:
        """Return a frozen copy of files of this package, the same for all apps that need them."""
        if files not in self._staged_packages:
            place = self._open.enter_context(ScratchFolder())
            target = Path(place) / OWN_PACKAGE
            with platform_errors("copy this package"):
                stage_this_package(target, files)
            self._staged_packages[files] = target
        return self._staged_packages[files]


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
