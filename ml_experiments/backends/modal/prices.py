"""Modal's prices on the date below, and the most that a run can cost.

The prices are copied by hand from https://modal.com/pricing. Pinning a region multiplies them
by 1.5 to 1.75, which this package never does.
"""

from __future__ import annotations

import datetime

from ml_experiments.backends.modal.gpus import GpuChoice, GpuRequest

PRICES_CHECKED = datetime.date(2026, 10, 1)

GPU_USD_PER_S = {
    "t4": 0.000164,
    "l4": 0.000222,
    "a10g": 0.000306,
    "l40s": 0.000542,
    "a100": 0.000583,
    "a100-80gb": 0.000694,
    "rtx-pro-6000": 0.000842,
    "h100": 0.001097,
    "h200": 0.001261,
    "b200": 0.001736,
}
CPU_USD_PER_CORE_S = 0.0000131
MEMORY_USD_PER_GIB_S = 0.00000222


def gpu_usd_per_s(choice: GpuChoice) -> float:
    """Return the price of all GPUs of a choice for one second."""
    return GPU_USD_PER_S[choice.gpu.key] * choice.count


def container_usd_per_s(choice: GpuChoice, cpu_cores: float, memory_gib: float) -> float:
    """Return the price of a container for one second: its GPUs, CPU cores and memory."""
    host = cpu_cores * CPU_USD_PER_CORE_S + memory_gib * MEMORY_USD_PER_GIB_S
    return gpu_usd_per_s(choice) + host


def worst_case_usd(
    request: GpuRequest, timeout_s: float, cpu_cores: float, memory_gib: float
) -> float:
    """Return the most that one attempt of a run can cost.

    The dearest of the choices, up to the timeout, with the CPU and memory limits used up. An
    attempt that Modal preempts is paid for as well, up to where it was interrupted.
    """
    dearest = max(container_usd_per_s(c, cpu_cores, memory_gib) for c in request.choices)
    return dearest * timeout_s
