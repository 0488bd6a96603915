"""Runs experiments on Modal's GPUs."""

from __future__ import annotations

import dataclasses
import secrets as random_tokens
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Unpack

import ml_experiments
from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.modal import plan as container_plan
from ml_experiments.backends.modal.app_pool import AppPool, OpenApp
from ml_experiments.backends.modal.billing.forecast import earlier_seconds, make_forecast
from ml_experiments.backends.modal.billing.rates import refresh_rates
from ml_experiments.backends.modal.cache import call_cache_operation
from ml_experiments.backends.modal.detached.containers import RemoteCall
from ml_experiments.backends.modal.errors import LIST_INSTEAD, platform_errors, require_access
from ml_experiments.backends.modal.fetching import (
    checkpoint_files,
    read_manifest_there,
    read_ref_there,
)
from ml_experiments.backends.modal.mounts import (
    CACHE_MOUNT,
    CACHE_VOLUME,
    RUNS_MOUNT,
    cache_volume,
    runs_volume,
)
from ml_experiments.backends.modal.options import ModalOptions
from ml_experiments.backends.modal.plan import (
    ContainerPlan,
    complete_spec,
    plan_container,
    remote_path,
)
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.packages import LOCK_FILE
from ml_experiments.backends.modal.preflight.requirements import (
    CONTAINER_MARKERS,
    parse_requirement,
    read_requirements,
)
from ml_experiments.backends.modal.preflight.staging import stage_source
from ml_experiments.backends.modal.remote_runs import bring_here, claim_id, runs_there
from ml_experiments.backends.modal.request import make_request
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.backends.modal.secrets import FoundSecrets, find_secrets
from ml_experiments.backends.pools import Pool
from ml_experiments.config.options import read_options
from ml_experiments.errors import ConfigError, RunFolderError
from ml_experiments.execution.launch.preparing import with_processes
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.worker.messages import Description
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.fingerprint import hash_of_file
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.serialization.scratch import ScratchFolder

_RUNS_AT_A_TIME = 64
# the points of a sweep don't all ask Modal about the token
_ACCESS_HOLDS_S = 60.0


class ModalBackend(Backend):
    """Containers with GPUs on Modal.

    The GPU type and the timeout are the run spec's; without them a run gets an a10g and four
    hours. Runs that need the same container share an app, and so stay warm.

    Example:
        ```python
        from ml_experiments import ModalBackend, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with ModalBackend(cpu=2) as backend:
                result = run_experiment(square, {"n": 3}, backend=backend, gpu="t4", timeout_s=600)
                print(result.results)  # 9
        ```

    Attributes:
        controller: The call on Modal that this backend is used in, if it makes the attempts at a
            run there.

    Args:
        **options: See `ModalOptions`. A requirements file is read now.

    Raises:
        ConfigError: If an option is unknown or not valid.
        PreflightError: If the requirements file isn't readable, or has other lines.
    """

    name: ClassVar[str] = "modal"
    outlives_client: ClassVar[bool] = True

    def __init__(self, **options: Unpack[ModalOptions]) -> None:
        super().__init__()
        self.controller: str | None = None
        checked = read_options(ModalOptions, options, "ModalBackend")
        file = checked.pop("requirements", None)
        more = read_requirements(Path(file)) if file else ()
        # as JSON, so that `runs resume` can ask for the same
        self._options: dict[str, Any] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in checked.items() if v
        }
        self._pip = (*checked.get("pip", ()), *more)
        if self._pip:
            self._options["pip"] = list(self._pip)
        self._found: FoundSecrets | None = None
        self._is_first = True
        self._has_access_until = 0.0  # as time.monotonic()
        self._earlier_s: dict[tuple[str, str, int], list[float]] = {}
        self._apps = AppPool(cuda_toolkit=bool(checked.get("cuda_toolkit")))
        self._threads = ThreadPoolExecutor(_RUNS_AT_A_TIME, thread_name_prefix="modal-run")

    def check_description(self, described: Description) -> None:
        """Refuse models that are files of this machine."""
        _check_local_models(described.local_models)

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Find what would fail on Modal, in about a second and before anything is built.

        The spec gets the GPU type and the timeout that the run will have.
        """
        spec = dataclasses.replace(run.spec, backend_options=self._options)
        plan = plan_container(spec, (*self._pip, *run.requirements))
        run = with_processes(dataclasses.replace(run, spec=spec), _gpu_count(spec, plan))
        if time.monotonic() >= self._has_access_until:
            require_access()  # last, for a typo can be mended without an account
            self._has_access_until = time.monotonic() + _ACCESS_HOLDS_S
        refresh_rates()
        self._find_secrets()
        if run.template is not None:
            self.templates.release(run.template)  # the run executes elsewhere
        return self._with_forecast(dataclasses.replace(run, template=None), plan)

    def packages(self, run: PreparedRun) -> dict[str, str]:
        """Return what the image is made of: the lock, and the packages that are added."""
        image = {
            "python": CONTAINER_MARKERS["python_full_version"],
            "lock": hash_of_file(LOCK_FILE),
        }
        if self._options.get("cuda_toolkit"):
            image["cuda_toolkit"] = "yes"
        added = [parse_requirement(given) for given in run.plan.pip]
        version = ml_experiments.__version__
        return {**image, OWN_PACKAGE: version, **{each.name: str(each) for each in added}}

    def model_revision(self, repo: str, ref: str) -> str | None:
        with platform_errors("look for the models of the run"):
            return read_ref_there(cache_volume(), repo, ref)

    def limit_cost(self, run: PreparedRun, max_usd: float) -> PreparedRun:
        """Shorten the timeouts of a run, so that Modal itself ends it before it costs more.

        Raises:
            UnknownPriceError: If no price is known for its GPU type.
        """
        return self._with_forecast(run, run.plan.limited_to(max_usd))

    def _with_forecast(self, run: PreparedRun, plan: ContainerPlan) -> PreparedRun:
        spec = complete_spec(run.spec, plan)
        what = (spec.experiment, str(plan.gpu), plan.nodes)
        if what not in self._earlier_s:
            self._earlier_s[what] = earlier_seconds(*what)
        forecast = make_forecast(plan, self._earlier_s[what], spec)
        return dataclasses.replace(run, spec=spec, plan=plan, forecast=forecast)

    def prefetch(self, model: str, observer: Observer, spec: RunSpec) -> None:
        """Download a model into the cache volume, in a container without a GPU."""
        observer.notice(spec, f"downloading {model} to the cache volume, without a GPU")
        name, _, revision = model.partition("@")
        call_cache_operation("pull", {"name": name, "revision": revision or None})

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Freeze the run's source and hand it over; returns at once."""
        spec, plan = prepared.spec, prepared.plan
        place = ScratchFolder()
        with platform_errors("copy the run's source"):
            source = stage_source(plan.imports, Path(place.name) / "source")
        self.forget_fingerprint(prepared, folder)  # somebody may have been asked meanwhile
        handle = ModalRunHandle(spec, folder, observer, prepared.secrets, self.controller)
        # on disk before the run can start: its result is found by it, whatever becomes of this
        # process, and an earlier submission's result does not count for it
        submission = random_tokens.token_hex(8)
        manifest = folder.change_manifest(
            lambda known: dataclasses.replace(known, modal=plan.place, submission=submission),
            Redactor(prepared.secrets),
        )
        if prepared.has_own_id:
            claim_id(folder)
        for note in (*source.notes, *self._news()):
            handle.notice(note)
        what = spec.gpu if spec.nodes == 1 else f"{spec.nodes} x {spec.gpu}"
        handle.notice(
            f"run {spec.run_id}: {what} for at most {spec.timeout_s:g} s; {prepared.forecast}"
        )
        remote = dataclasses.replace(spec, experiment=remote_path(spec.experiment), import_paths=())
        request = make_request(
            remote,
            dataclasses.replace(manifest, controller=self.controller),
            prepared.secrets,
            prepared.setup_key,
            is_capped=plan.is_capped,
            idle_s=container_plan.IDLE_S,
        ).to_dict()

        def open_app() -> OpenApp:
            with place:
                secrets = self._find_secrets().secrets
                return self._apps.app_for(prepared, source, secrets, handle)

        return self.start(
            handle, lambda: self._threads.submit(handle.see_through, open_app, request)
        )

    def end_pool(self, pool: Pool) -> None:
        """Stop the app of a pool, and so its container, without waiting for it."""
        self._threads.submit(self._apps.end, pool)

    def attach(self, folder: RunFolder, observer: Observer) -> RunHandle:
        """Return the handle of a run that another process, perhaps a dead one, submitted.

        Raises:
            RunFolderError: If its manifest names no call on Modal.
            AuthError: If there is no token, or Modal rejected it.
        """
        manifest = folder.read_manifest()
        if manifest.modal is None or (manifest.controller is None and manifest.submission is None):
            raise RunFolderError(f"{folder.path}: the run was never handed over to Modal")
        require_access(LIST_INSTEAD)
        spec, here = folder.read_spec(), self.controller
        handle = ModalRunHandle(spec, folder, observer, controller=here)
        is_known = manifest.call_id is not None
        if not is_known and read_manifest_there(runs_volume(), spec.run_id, manifest, here) is None:
            raise RunFolderError(
                f"Modal has nothing of run {handle.run_id}: it was not handed over, or waits for a "
                "GPU. Follow it again later, or run it again: ml-experiments runs resume --force "
                f"{handle.run_id}"
            )
        return self.start(handle, lambda: self._threads.submit(handle.collect))

    def bring_here(self, run_id: str, runs_dir: Path) -> bool:
        if run_id not in runs_there():
            return False
        bring_here(run_id, runs_dir)
        return True

    def recover(self, folder: RunFolder, observer: Observer) -> None:
        manifest = folder.read_manifest()
        place, maker = manifest.modal, manifest.controller
        is_known = place is None or (maker is None and place.function_call_id is not None)
        if folder.result_file.exists() or is_known:
            return
        require_access(LIST_INSTEAD)
        handle = ModalRunHandle(folder.read_spec(), folder, observer)
        if maker is not None and RemoteCall(maker).goes_on():
            raise RunFolderError(
                f"run {handle.run_id} goes on in a container on Modal; cancel it first: "
                f"ml-experiments runs cancel {handle.run_id}"
            )
        theirs = read_manifest_there(runs_volume(), handle.run_id, manifest)
        if theirs is None or not theirs.is_on_modal:
            return
        if not handle.recover():
            raise RunFolderError(
                f"run {handle.run_id} has begun on Modal, though its client was lost before it "
                f"knew; follow it with: ml-experiments runs follow {handle.run_id}"
            )

    def take_over(self, folder: RunFolder) -> None:
        """Copy a run folder to the volume, so that the run goes on there from its checkpoints.

        Raises:
            BackendError: If Modal doesn't take it.
        """
        files = [f for f in folder.path.rglob("*") if f.is_file() and not f.name.startswith(".")]
        with (
            platform_errors("copy the run folder to Modal"),
            runs_volume().batch_upload(force=True) as batch,
        ):
            for file in files:
                if file != folder.result_file:
                    batch.put_file(file, f"/{file.relative_to(folder.path.parent).as_posix()}")

    def checkpoint_files(self, folder: RunFolder) -> dict[str, float]:
        with platform_errors("look for the checkpoints of the run"):
            return checkpoint_files(runs_volume(), folder.path.name)

    def close(self) -> None:
        """Wait for the runs that were submitted, and stop their apps."""
        self.wait_for_runs()  # first: a run may be submitted again
        self._threads.shutdown(wait=True)
        self._apps.close()
        super().close()

    def _find_secrets(self) -> FoundSecrets:
        if self._found is None:
            self._found = find_secrets(self._options.get("secrets", ()))
        return self._found

    def _news(self) -> tuple[str, ...]:
        """Return what to say with the first run only."""
        first, self._is_first = self._is_first, False
        return self._find_secrets().notes if first else ()


def _check_local_models(paths: Iterable[str]) -> None:
    """Refuse models that a container does not have.

    Raises:
        ConfigError: If there is one; it says where to put it.
    """
    mounts = (CACHE_MOUNT, RUNS_MOUNT)
    for path in map(Path, paths):
        if not any(path.is_relative_to(mount) for mount in mounts):
            place = f"/models/{path.name}"
            missing = "" if path.exists() else ", where nothing is,"
            raise ConfigError(
                f"{path} is a path of this machine{missing} and a container on Modal has none of "
                f"its files: `modal volume put {CACHE_VOLUME} {path} {place}` puts it on the "
                f"volume; then give {CACHE_MOUNT}{place}, or a name on the Hub"
            )


def _gpu_count(spec: RunSpec, plan: ContainerPlan) -> int:
    """Return how many GPUs each choice has, at least.

    Raises:
        ConfigError: If a launcher can't know how many processes to start.
    """
    counts = sorted({choice.count for choice in plan.gpu.choices})
    if len(counts) > 1 and spec.launch is not None and spec.nproc_per_node is None:
        raise ConfigError(
            f"the choices of gpu={spec.gpu!r} have different numbers of GPUs; say how many "
            f"processes there shall be: nproc_per_node={counts[0]}"
        )
    return counts[0]
