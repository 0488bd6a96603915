"""The CPU and memory of a container, with limits, so that its price has one too."""

from __future__ import annotations

from dataclasses import dataclass

from ml_experiments.errors import BackendError
from ml_experiments.gpus import GpuRequest

# what Modal reserves when nothing is asked for
_LEAST_CORES = 0.125
_LEAST_MIB = 128
_CORES_PER_GPU = 16.0
_MOST_CORES = 64.0
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class HostResources:
    """CPU cores and memory: what is reserved, and the most that can be used and paid for."""

    cpu_cores: tuple[float, float]
    memory_mib: tuple[int, int]

    @property
    def most_memory_gib(self) -> float:
        """The limit of memory."""
        return self.memory_mib[1] / _MIB_PER_GIB


def host_resources(
    request: GpuRequest, cpu: float | None = None, memory_gib: float | None = None
) -> HostResources:
    """Return the CPU and memory for a container with these GPUs.

    The limits leave room for what GPUs need: 16 cores each, up to 64, and twice their memory.
    What is asked for is reserved, and raises the limit where it is more.

    Raises:
        BackendError: If `cpu` or `memory_gib` is not above 0.
    """
    for name, value in (("cpu", cpu), ("memory_gib", memory_gib)):
        if value is not None and not value > 0:
            raise BackendError(f"{name} is {value}; it must be above 0")
    count = max(choice.count for choice in request.choices)
    gpu_memory_gib = max(choice.memory_gb for choice in request.choices)
    cores = cpu or _LEAST_CORES
    reserved = int((memory_gib or 0) * _MIB_PER_GIB) or _LEAST_MIB
    return HostResources(
        cpu_cores=(cores, max(cores, min(_CORES_PER_GPU * count, _MOST_CORES))),
        memory_mib=(reserved, max(reserved, 2 * gpu_memory_gib * _MIB_PER_GIB)),
    )
