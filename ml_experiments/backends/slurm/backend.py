"""Runs experiments on a Slurm cluster, each as a job that submitit submits."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import shlex
import sys
import threading
import time
from contextlib import redirect_stderr
from typing import Any, ClassVar, Unpack

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.slurm.job import execute_job
from ml_experiments.backends.slurm.options import SlurmOptions
from ml_experiments.backends.slurm.queue import (
    GpuRequest,
    LocalQueue,
    Queue,
    check_gpus,
    parse_gpu,
    require_slurm,
)
from ml_experiments.backends.slurm.run_handle import (
    JOB_FOLDER,
    SlurmRunHandle,
    end_lost_runs,
    write_failure,
)
from ml_experiments.config.options import read_options
from ml_experiments.errors import BackendError, PreflightError, RunFolderError
from ml_experiments.execution.launch.preparing import check_packages, with_processes
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import SPEC_USER_DATA, RunFolder
from ml_experiments.runs.spec import PreparedRun, RunSpec

DEFAULT_TIMEOUT_S = 4 * 3600
# of a job besides its run: to start, to end, and to save what it has before
_MARGIN_S = 120
_SAVE_S = 90
_LOOK_EVERY_S = 0.25
_ASK_EVERY_S = 2.0
# options that are sbatch's own, under the same name
_SBATCH = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "cpus_per_task")


class SlurmBackend(Backend):
    """Jobs on a Slurm cluster, whose nodes share a file system with this machine.

    A run without a timeout gets four hours.

    Args:
        **options: See `SlurmOptions`.

    Raises:
        ConfigError: If an option is unknown or not valid.
        BackendError: If Slurm's commands, or submitit, are not here.
    """

    name: ClassVar[str] = "slurm"
    outlives_client: ClassVar[bool] = True

    def __init__(self, **options: Unpack[SlurmOptions]) -> None:
        super().__init__()
        self._options = read_options(SlurmOptions, options, "SlurmBackend")
        self._is_local = self._options.get("cluster") == "local"
        if not self._is_local:
            require_slurm()
        self._submitit = _import_submitit()
        self._queue = LocalQueue() if self._is_local else Queue(_ASK_EVERY_S)
        self._followed: list[SlurmRunHandle] = []
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Find what Slurm would refuse, or what could not run there.

        Raises:
            GpuTypeError: If the cluster has no such GPU.
            PreflightError: If the config holds a secret, which no file may.
        """
        record = run.spec.to_dict()
        if Redactor(run.secrets).redact_record(record, SPEC_USER_DATA) != record:
            raise PreflightError(
                "the config, name or tags hold a secret. A job reads them from the run folder, "
                "which must not have any; let the experiment read it from an environment variable, "
                "which jobs have, too"
            )
        gpu = None if run.spec.gpu is None else parse_gpu(run.spec.gpu)
        if gpu is not None and not self._is_local:
            check_gpus(gpu)
        check_packages(run.spec.launch)
        timeout_s = run.spec.timeout_s or DEFAULT_TIMEOUT_S
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self._options.items()}
        spec = dataclasses.replace(run.spec, timeout_s=timeout_s, backend_options=options)
        run = dataclasses.replace(run, spec=spec, setup_key=None)  # a job serves one run
        run = with_processes(run, 0 if gpu is None else gpu.count)
        if run.template is not None:
            self.templates.release(run.template)
        return dataclasses.replace(run, template=None, plan=gpu)

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Submit the job of a run; returns at once."""
        spec = prepared.spec
        attempt = folder.read_manifest().attempt
        try:
            executor = self._executor(spec, folder, prepared.plan)
            with redirect_stderr(io.StringIO()):  # what sbatch says there is in the error, too
                submitted = executor.submit(execute_job, str(folder.path), attempt, prepared.source)
                job = str(submitted.job_id)
        except (RuntimeError, OSError) as e:
            message = " ".join(str(e).split())
            error = BackendError(f"Slurm did not take the run: {message}")
            write_failure(folder, error, Redactor(prepared.secrets))
            raise error from e
        self._queue.expire()
        # the job waits for this, and writes the manifest from then on
        folder.change_manifest(
            lambda manifest: dataclasses.replace(manifest, job=job), Redactor(prepared.secrets)
        )
        observer.notice(spec, f"run {spec.run_id} is job {job} of Slurm")
        unused = [*(self._options.keys() - {"cluster"}), *(["--gpu"] if spec.gpu else [])]
        if self._is_local and unused:
            names = ", ".join(sorted(unused))
            observer.notice(spec, f"cluster=local: what is asked of Slurm has no effect ({names})")
        handle = SlurmRunHandle(spec, folder, observer, job, self._queue, prepared.secrets)
        return self._follow(handle)

    def attach(self, folder: RunFolder, observer: Observer) -> RunHandle:
        """Return the handle of a run that another process, perhaps a dead one, submitted.

        Raises:
            RunFolderError: If it was never handed over to Slurm.
        """
        job = folder.read_manifest().job
        if job is None:
            raise RunFolderError(f"{folder.path}: the run was never handed over to Slurm")
        handle = SlurmRunHandle(
            folder.read_spec(),
            folder,
            observer,
            job,
            self._queue,
            secret_values(),
            shows_earlier=True,
        )
        return self._follow(handle)

    def recover(self, folder: RunFolder, observer: Observer) -> None:  # noqa: ARG002
        """Write how a run has ended whose job is gone, though its client was lost before."""
        end_lost_runs([folder], self._queue)

    def close(self) -> None:
        """Wait for the runs that were submitted."""
        self.wait_for_runs()
        super().close()

    def _follow(self, handle: SlurmRunHandle) -> RunHandle:
        with self._lock:
            self._followed.append(handle)
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, daemon=True, name="slurm-runs")
                self._watcher.start()
        return self.start(handle, lambda: handle.future)

    def _watch(self) -> None:
        """Look after all runs that go on, from one thread, until there are none."""
        while True:
            with self._lock:
                followed = tuple(self._followed)
                if not followed:
                    self._watcher = None
                    return
            for handle in followed:
                if _has_ended(handle):
                    with self._lock:
                        self._followed.remove(handle)
            time.sleep(_LOOK_EVERY_S)

    def _executor(self, spec: RunSpec, folder: RunFolder, gpu: GpuRequest | None) -> Any:
        """Return submitit's executor for the job of a run."""
        place = folder.path / JOB_FOLDER
        assert spec.timeout_s is not None
        save_s = self._options.get("signal_delay_s", _SAVE_S)
        minutes = math.ceil((spec.timeout_s + save_s + _MARGIN_S) / 60)
        if self._is_local:
            executor = self._submitit.LocalExecutor(place)
            executor.update_parameters(timeout_min=minutes)
            return executor
        # exec, and no srun: the job's process is the one that Slurm signals
        executor = self._submitit.SlurmExecutor(place, python=f"exec {shlex.quote(sys.executable)}")
        parameters: dict[str, Any] = {
            name: self._options[name] for name in _SBATCH if name in self._options
        }
        if gpu is not None:
            parameters["gres"] = gpu.gres
        if "memory_gib" in self._options:
            parameters["mem"] = f"{math.ceil(self._options['memory_gib'] * 1024)}M"
        if "setup" in self._options:
            parameters["setup"] = list(self._options["setup"])
        more = {"signal": f"B:USR2@{save_s}", "requeue": True, **self._options.get("sbatch", {})}
        if "reservation" in self._options:
            more["reservation"] = self._options["reservation"]
        executor.update_parameters(
            **parameters,
            job_name=_job_name(spec),
            time=minutes,
            use_srun=False,
            stderr_to_stdout=True,
            additional_parameters=more,
        )
        return executor


def _has_ended(handle: SlurmRunHandle) -> bool:
    try:
        return handle.look()
    except Exception as e:  # noqa: BLE001 - whoever waits for the run gets it
        handle.future.set_exception(e)
        return True


def _job_name(spec: RunSpec) -> str:
    name = spec.name or re.split(r"[.:/]", spec.experiment)[-1]
    return re.sub(r"[^\w.-]", "_", name)[:64] or "run"


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError as e:
        raise BackendError(
            "the slurm backend needs submitit: pip install 'ml_experiments[slurm]'"
        ) from e
    return submitit
