"""Runs that go on with more memory: on a larger GPU of Modal's, or there instead of here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_experiments.backends.modal.billing.cost import choice_that_ran
from ml_experiments.backends.modal.billing.prices import LARGER, next_choice
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, parse_gpu
from ml_experiments.errors import ConfigError
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec


def ladder_of(given: str | bool | None) -> str | None:
    """Return the GPU types to climb as a spec has them: their names, or `larger`; None for none.

    Raises:
        GpuTypeError: If one is not a GPU type.
        ConfigError: If it is a field of the config.
    """
    if given is None or given is False:
        return None
    if given is True or given == LARGER:
        return LARGER
    if "=" in given:
        raise ConfigError(
            f"{given!r} is not a GPU type; where a field of the config follows, write "
            f"--escalate={LARGER}"
        )
    return str(parse_gpu(given))


def check_attempts(options: Mapping[str, Any], backend: str) -> None:
    """Make sure that a backend can make the attempts that the options of a run ask for.

    Raises:
        ConfigError: If it can't.
        GpuTypeError: If a GPU type is not valid.
    """
    asked = [name for name in ("retries", "escalate", "escalate_to") if options.get(name)]
    if asked and backend == "debug":
        raise ConfigError(
            f"{asked[0]} can't go with the debug backend, which runs in this process, once"
        )
    if "escalate_to" in asked:
        if backend == "modal":
            raise ConfigError(
                "escalate_to is for a run on this machine; on Modal, it's escalate that goes on "
                "with a larger GPU"
            )
        if options.get("launch"):
            raise ConfigError(
                "escalate_to can't go with launch: on Modal, the run would have another number of "
                "processes"
            )
        parse_gpu(options["escalate_to"])
    elif "escalate" in asked and backend != "modal":
        raise ConfigError(
            "escalate is for a run on Modal; a run on this machine goes on there with "
            "escalate_to=GPU"
        )


def with_more_memory(spec: RunSpec, error: RunError, manifest: Manifest) -> RunSpec | None:
    """Return the spec with which a run goes on after an error; None if it doesn't for that.

    Args:
        spec: The spec of the attempt that ended.
        error: What it ended with.
        manifest: Where it executed.
    """
    if spec.backend != "modal":
        is_full = error.kind in (ErrorKind.CUDA_OOM, ErrorKind.HOST_OOM)
        return on_modal(spec) if is_full and spec.escalate_to is not None else None
    if spec.escalate is None or error.kind is not ErrorKind.CUDA_OOM:
        return None
    devices = [str(gpu.get("name")) for gpu in manifest.environment.get("gpus", ())]
    ran = choice_that_ran(parse_gpu(spec.gpu or DEFAULT_GPU_TYPE), devices)
    following = next_choice(ran, spec.escalate)
    return None if following is None else dataclasses.replace(spec, gpu=str(following))


def on_modal(spec: RunSpec) -> RunSpec:
    """Return the spec of a run on this machine as it goes on on Modal."""
    return dataclasses.replace(spec, backend="modal", gpu=spec.escalate_to, backend_options={})
