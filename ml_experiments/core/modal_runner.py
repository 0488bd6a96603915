"""The documented entry point: run experiments on Modal's GPUs, and manage the model cache.

From Python, `run_experiment_local` runs an experiment class on a GPU and returns its results.
From the shell, `modal run` and `modal deploy` take this file:

    modal run ml_experiments/core/modal_runner.py --experiment-config … --experiment-class-path …
    modal run ml_experiments/core/modal_runner.py::list_cached_models
    modal deploy ml_experiments/core/modal_runner.py
"""

from __future__ import annotations

import datetime
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Unpack

import modal
from typing_extensions import Doc

from ml_experiments.backends.modal.container import cache_operations, run_remote
from ml_experiments.backends.modal.errors import platform_errors
from ml_experiments.backends.modal.gpu_functions import APP_NAME, gpu_function
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, GPU_CONFIGS
from ml_experiments.backends.modal.image import cache_image, package_image, with_this_package
from ml_experiments.backends.modal.mounts import CACHE_MOUNT, RUNS_MOUNT, cache_volume, runs_volume
from ml_experiments.backends.modal.options import ModalOptions
from ml_experiments.backends.modal.plan import DEFAULT_TIMEOUT_S
from ml_experiments.backends.modal.request import RunRequest, make_request
from ml_experiments.backends.modal.resources import check_timeout
from ml_experiments.config.options import read_options
from ml_experiments.errors import ConfigError
from ml_experiments.runner.options import RunOptions
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.spec import RunSpec, new_run_id

__all__ = [
    "GPU_CONFIGS",
    "app",
    "cache_operation",
    "clear_cache",
    "create_gpu_function",
    "gpu_image",
    "gpu_toolkit_image",
    "hf_cache_volume",
    "list_cached_models",
    "platform_errors",
    "run",
    "run_experiment",
    "run_experiment_local",
]


app = modal.App(APP_NAME)

# this module, and the ready experiments that `run_experiment` finds by name
_ROOTS = ("core.modal_runner", "execution", "tasks")
gpu_image = with_this_package(package_image(), *_ROOTS)
gpu_toolkit_image = with_this_package(package_image(cuda_toolkit=True), *_ROOTS)
hf_cache_volume = cache_volume()

_cache_function = app.function(
    image=with_this_package(cache_image(), "core.modal_runner"),
    volumes={CACHE_MOUNT: hf_cache_volume},
    timeout=3600,
)


@_cache_function
def list_cached_models() -> list[str]:
    """Print and return the names of the models in the cache volume."""
    names = cache_operations.list_cached_models()
    sys.stdout.write("".join(f"{name}\n" for name in names) or "the cache holds no models\n")
    return names


@_cache_function
def clear_cache(pattern: str | None = None, force: bool = False) -> dict[str, Any]:
    """Delete models from the cache volume; without `force`, only say what would be deleted.

    Args:
        pattern: A glob such as `stabilityai/*`; all models without one.
        force: Delete.
    """
    outcome = cache_operations.clear_cache(pattern, force)
    verb = "would delete" if outcome["dry_run"] else "deleted"
    sys.stdout.write(f"{verb} {outcome['deleted']} models, {outcome['freed_mb']:.2f} MB\n")
    return outcome


@_cache_function
def cache_operation(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Do one of `ml_experiments.cache.operations.OPERATIONS` to the cache volume."""
    return cache_operations.cache_operation(operation, arguments)


@app.function(
    image=gpu_image,
    gpu=GPU_CONFIGS[DEFAULT_GPU_TYPE],
    timeout=DEFAULT_TIMEOUT_S,
    volumes={CACHE_MOUNT: hf_cache_volume, RUNS_MOUNT: runs_volume()},
)
def run_experiment(
    experiment_config: str,
    experiment_class_path: str,
    seed: int | None = None,
    timeout: int = DEFAULT_TIMEOUT_S,
) -> dict[str, Any]:
    """Run an experiment of an installed package in this container.

    For `modal run` and for calls of the deployed app from elsewhere. It has the default GPU
    type: `with_options(gpu=…)` changes it. An experiment of one's own modules, other packages
    and secrets take `run_experiment_local` or `ml-experiments run --gpu`.

    Args:
        experiment_config: The config as JSON text; from Python, a dict does too.
        experiment_class_path: Import path of the class.
        seed: Drawn and recorded when None.
        timeout: Seconds after which this function is ended, so that the experiment hears of it
            in time; where `with_options(timeout=…)` changes it, the same belongs here.
    """
    request = _request_for(experiment_config, experiment_class_path, seed, check_timeout(timeout))
    result = run_remote.run_remote(request.to_dict())
    sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


@app.local_entrypoint()
def run(
    experiment_config: str,
    experiment_class_path: str,
    seed: int | None = None,
    timeout: int = DEFAULT_TIMEOUT_S,
) -> None:
    """Run an experiment by `run_experiment`, and exit with 1 if it failed.

    It is what `modal run ml_experiments/core/modal_runner.py` calls.

    Args:
        experiment_config: The config as JSON text.
        experiment_class_path: Import path of the class.
        seed: See `run_experiment`.
        timeout: See `run_experiment`.
    """
    result = run_experiment.remote(experiment_config, experiment_class_path, seed, timeout)
    if result["status"] != "success":
        sys.exit(1)


def create_gpu_function(
    gpu_type: str = DEFAULT_GPU_TYPE,
    timeout: int = 3600,
    cpu: float | None = None,
    memory: int | None = None,
    *,
    secrets: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function run on Modal with a GPU and the model cache.

    The function goes to the `app` of its file. A file without one gets its own, named after it,
    which `modal run`, `modal deploy` and `function.app` find.

    Args:
        gpu_type: A GPU type, `h100:8` for several, `h100,a100-80gb` for alternatives.
        timeout: Seconds after which a call is ended, up to 24 hours.
        cpu: CPU cores to reserve.
        memory: Memory to reserve, in MiB.
        secrets: Names of Modal secrets to attach.

    Raises:
        GpuTypeError: If the GPU type is not valid.
        Error: If another argument is not; the message says what is allowed.
    """
    return gpu_function(
        gpu_type, timeout, cpu, memory, secrets, image=gpu_image, cache=hf_cache_volume
    )


class ModalRunOptions(RunOptions, ModalOptions, total=False):
    """What `run_experiment_local` takes besides its own parameters."""

    runs_dir: Annotated[str | Path | None, Doc("Where the run folder goes.")]


def run_experiment_local(
    experiment_config: Mapping[str, Any],
    experiment_class_path: str,
    gpu_type: str = DEFAULT_GPU_TYPE,
    timeout: int = DEFAULT_TIMEOUT_S,
    **options: Unpack[ModalRunOptions],
) -> dict[str, Any]:
    """Run an experiment on Modal from this machine, and wait for its result.

    Logs and progress are shown while it runs. Artifacts come back into a run folder, which the
    result names. An error of the experiment is in the result; what keeps it from starting is
    raised.

    Args:
        experiment_config: The config, as the experiment's own fields.
        experiment_class_path: Import path of the class.
        gpu_type: A GPU type, `h100:8` for several, `h100,a100-80gb` for alternatives.
        timeout: Seconds after which the run is ended, up to 24 hours.
        **options: See `ModalRunOptions`.

    Returns:
        `status`, `results`, `experiment_class`, `run_id`, `error`, `artifacts`, `timings`,
        `cost`, `environment`, `attempts` and `run_dir`. The results are the values that `run()`
        returned, of
        which a date is a date; the rest is JSON.

    Raises:
        AuthError: If there is no Modal token, or Modal rejected it.
        Error: If the run could not work; the message says what to do.
    """
    for name, parameter in {"gpu": "gpu_type", "timeout_s": "timeout"}.items():
        if name in options:
            raise ConfigError(f"run_experiment_local takes {parameter}, not {name}")
    checked = read_options(ModalRunOptions, options, "run_experiment_local")
    from ml_experiments.runner.run import run_experiment as run_on_backend

    runs_dir = checked.pop("runs_dir", None)
    names = ModalOptions.__annotations__
    result = run_on_backend(
        experiment_class_path,
        experiment_config,
        backend="modal",
        backend_options={name: value for name, value in checked.items() if name in names},
        runs_dir=Path(runs_dir) if runs_dir else None,
        gpu=gpu_type,
        timeout_s=check_timeout(timeout),
        **{name: value for name, value in checked.items() if name not in names},
    )
    return {**result.to_dict(), "results": result.results}


def _request_for(config: Any, experiment: str, seed: int | None, timeout_s: int) -> RunRequest:
    """Return what `run_remote` takes, for a class path and a config, or one as JSON text."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as e:
            raise ConfigError(f"experiment_config is not JSON: {e}") from e
    # the same when a preempted input runs again, so that it finds its checkpoints
    run_id = modal.current_input_id() or new_run_id()
    drawn = random.Random(run_id).randrange(2**31) if seed is None else seed
    description = run_remote.describe(experiment, config, drawn)
    spec = RunSpec(
        run_id=run_id,
        experiment=experiment,
        config=description.config,
        seed=drawn,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        backend="modal",
        timeout_s=timeout_s,
    )
    return make_request(
        spec,
        Manifest(run_id=run_id, submission=run_id),
        description.secrets,
        description.setup_key,
    )
