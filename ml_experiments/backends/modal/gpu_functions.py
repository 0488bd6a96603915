"""A decorator that gives a user's own Modal function a GPU and the model cache."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import modal
from modal.partial_function import PartialFunction

from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.backends.modal.mounts import CACHE_MOUNT
from ml_experiments.backends.modal.resources import check_cpu, check_memory, check_timeout
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.reference import parse_experiment_path

APP_NAME = "ml-experiments"
_MAX_APP_NAME = 64


def gpu_function(
    gpu_type: str,
    timeout: int,
    cpu: float | None,
    memory: int | None,
    secrets: Sequence[str],
    *,
    image: modal.Image,
    cache: modal.Volume,
) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator of `modal_runner.create_gpu_function`, which documents the arguments."""
    if callable(gpu_type):
        raise ConfigError("write @create_gpu_function(), with parentheses")
    gpu = parse_gpu(gpu_type).modal
    timeout_s = check_timeout(timeout)
    cpu_cores = None if cpu is None else check_cpu(cpu)
    memory_mib = None if memory is None else check_memory(memory)
    secret_names = _secret_names(secrets)

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.isclass(function):
            raise ConfigError(
                f"create_gpu_function is for functions, and {function.__name__} is a class; write "
                "@app.cls(image=gpu_image, gpu=..., volumes={'/cache': hf_cache_volume})"
            )
        return _app_of_file(function).function(
            image=image,
            gpu=gpu,
            timeout=timeout_s,
            cpu=cpu_cores,
            memory=memory_mib,
            secrets=[modal.Secret.from_name(name) for name in secret_names],
            volumes={CACHE_MOUNT: cache},
        )(function)

    return decorate


def _app_of_file(function: Callable[..., Any]) -> modal.App:
    """Return the app that the file of a function has under the name `app`, or give it one.

    Two files must not share one: what is deployed last replaces the whole app.
    """
    # what stands between, such as @modal.concurrent or a decorator of a package, is of other files
    raw = function._get_raw_f() if isinstance(function, PartialFunction) else function
    names = inspect.unwrap(raw).__globals__
    if "app" not in names:
        names["app"] = modal.App(_app_name(names))
    found = names["app"]
    if not isinstance(found, modal.App):
        raise ConfigError(
            f"{names.get('__file__', names['__name__'])} has a {type(found).__name__} under the "
            "name 'app', where `modal run` and `modal deploy` look for the modal.App; rename it, "
            "or define app = modal.App('a name') above the functions"
        )
    return found


def _app_name(names: Mapping[str, Any]) -> str:
    """Return the name of the app for a module: `ml-experiments-train` for train.py."""
    spec, file = names.get("__spec__"), names.get("__file__")
    module = str(spec.name if spec else names["__name__"])
    if file and "." not in module:  # started as a script, perhaps one inside a package
        module = parse_experiment_path(f"{file}:f").module
    name = f"{APP_NAME}-{module}"
    if len(name) <= _MAX_APP_NAME and re.fullmatch(r"[\w.-]+", name, re.A):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # tells 训练.py from 评估.py
    clean = re.sub(r"[^\w.-]", "-", name, flags=re.A)
    return f"{clean[: _MAX_APP_NAME - len(digest) - 1]}-{digest}"


def _secret_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):  # would be taken for a list of its letters
        raise ConfigError(f"secrets is {names!r}; write a list: secrets=[{names!r}]")
    if not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"secrets is {names!r}; it must be a list of strings")
    return tuple(names)
