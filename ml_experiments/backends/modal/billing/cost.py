"""What a run on Modal cost, estimated from its seconds and the price table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable

from ml_experiments.backends.modal.billing.prices import container_usd_per_s, gpu_usd_per_s
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, GpuChoice, GpuRequest, parse_gpu
from ml_experiments.errors import UnknownPriceError
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec


def cost_of(result: RunResult, spec: RunSpec, manifest: Manifest) -> dict[str, float]:
    """Return the worst case that was shown and, once the run has executed, two prices.

    The estimate counts the seconds of the run itself, at the price of its GPUs and of the CPU and
    memory that were reserved. `at_most_usd` counts the seconds of the container that are the
    run's, its start and its last wait among them, with all CPU and memory that it could use: how
    much of them it has used, only Modal's bill says. Several machines have the same seconds.
    """
    place = manifest.modal
    if place is None:
        return {}
    cost = {}
    if place.cpu_cores and place.memory_mib:
        devices = [gpu["name"] for gpu in manifest.environment.get("gpus", [])]
        with contextlib.suppress(UnknownPriceError):
            choice = choice_that_ran(parse_gpu(spec.gpu or DEFAULT_GPU_TYPE), devices)
            for name, seconds, which in (
                ("estimate_usd", result.timings.get("total_s"), 0),
                ("at_most_usd", result.timings.get("container_s"), 1),
            ):
                if seconds is not None:
                    host = (place.cpu_cores[which], place.memory_mib[which] / 1024)
                    cost[name] = container_usd_per_s(choice, *host) * seconds * spec.nodes
    if place.worst_case_usd is not None:
        cost["worst_case_usd"] = place.worst_case_usd
    return cost


def choice_that_ran(request: GpuRequest, devices: Iterable[str]) -> GpuChoice:
    """Return the choice that fits the devices' names; the dearest when none does.

    Args:
        request: The choices.
        devices: Names as NVIDIA's driver gives them, such as `NVIDIA A100-SXM4-80GB`.
    """
    words = {word for name in devices for word in re.split(r"[^A-Z0-9]+", name.upper())}
    fitting = [c for c in request.choices if set(c.gpu.modal.split("-")) <= words]
    return max(fitting or request.choices, key=gpu_usd_per_s)
