"""The timeout, CPU and memory of a container: what is allowed, and the limits of its price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from ml_experiments.backends.modal.gpus import GpuRequest
from ml_experiments.errors import BackendError
from ml_experiments.serialization.plain_values import to_python_scalar

MAX_TIMEOUT_S = 24 * 3600

# what Modal reserves when nothing is asked for
_MIN_CORES = 0.125
_MIN_MIB = 128
_CORES_PER_GPU = 16.0
_MAX_CORES = 64.0
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class HostResources:
    """CPU cores and memory: what is reserved, and the most that can be used and paid for."""

    cpu_cores: tuple[float, float]
    memory_mib: tuple[int, int]

    @property
    def max_memory_gib(self) -> float:
        """The limit of memory."""
        return self.memory_mib[1] / _MIB_PER_GIB


def host_resources(
    request: GpuRequest, cpu: float | None = None, memory_gib: float | None = None
) -> HostResources:
    """Return the CPU and memory for a container with these GPUs.

    The limits leave room for what GPUs need: 16 cores each, up to 64, and twice their memory.
    What is asked for is reserved, and raises the limit where it is more.
    """
    count = max(choice.count for choice in request.choices)
    gpu_memory_gib = max(choice.memory_gb for choice in request.choices)
    cores = cpu or _MIN_CORES
    reserved = int((memory_gib or 0) * _MIB_PER_GIB) or _MIN_MIB
    return HostResources(
        cpu_cores=(cores, max(cores, min(_CORES_PER_GPU * count, _MAX_CORES))),
        memory_mib=(reserved, max(reserved, 2 * gpu_memory_gib * _MIB_PER_GIB)),
    )


def check_timeout(seconds: object) -> int:
    """Return a timeout that Modal takes.

    Raises:
        BackendError: If it is not a whole number of seconds from 1 to 24 hours.
    """
    seconds = to_python_scalar(seconds)
    if not _is_above_zero(seconds) or int(seconds) != seconds or seconds > MAX_TIMEOUT_S:
        raise BackendError(
            f"timeout is {seconds!r}; it must be a whole number of seconds from 1 to "
            f"{MAX_TIMEOUT_S} (24 h, after which Modal ends every call; save checkpoints and "
            "go on in another one)"
        )
    return int(seconds)


def check_cpu(cores: object) -> float:
    """Return a number of CPU cores that Modal takes.

    Raises:
        BackendError: If it is not a number above 0.
    """
    cores = to_python_scalar(cores)
    if not _is_above_zero(cores):
        raise BackendError(f"cpu is {cores!r}; it must be a number of cores above 0, such as 4")
    return cores


def check_memory(mib: object) -> int:
    """Return an amount of memory that Modal takes.

    Raises:
        BackendError: If it is not a whole number of MiB above 0.
    """
    mib = to_python_scalar(mib)
    if not _is_above_zero(mib) or int(mib) != mib:
        raise BackendError(
            f"memory is {mib!r}; it must be a whole number of MiB above 0, such as 32768"
        )
    return int(mib)


def _is_above_zero(value: object) -> TypeGuard[float]:
    # True is an int to Python
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
