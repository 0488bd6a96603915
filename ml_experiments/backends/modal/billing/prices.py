"""Modal's prices on the date below, and the most that a run can cost.

The prices are copied by hand from the page below. Pinning a region multiplies them by 1.5 to
1.75, which this package never does.
"""

from __future__ import annotations

import datetime

from ml_experiments.backends.modal.gpus import CATALOGUE, GpuChoice, GpuRequest, parse_gpu
from ml_experiments.errors import UnknownPriceError

PRICES_CHECKED = datetime.date(2026, 10, 1)
PRICES_SOURCE = "https://modal.com/pricing"
# a ladder of each next larger GPU type, the cheapest first
LARGER = "larger"

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
    """Return the price of all GPUs of a choice for one second.

    Raises:
        UnknownPriceError: If the table has none.
    """
    try:
        return GPU_USD_PER_S[choice.gpu.key] * choice.count
    except KeyError as e:
        raise UnknownPriceError(
            f"the prices of {PRICES_CHECKED} have none for the GPU type {choice.gpu.key!r}; those "
            f"with one are {', '.join(GPU_USD_PER_S)}"
        ) from e


def container_usd_per_s(choice: GpuChoice, cpu_cores: float, memory_gib: float) -> float:
    """Return the price of a container for one second: its GPUs, CPU cores and memory."""
    host = cpu_cores * CPU_USD_PER_CORE_S + memory_gib * MEMORY_USD_PER_GIB_S
    return gpu_usd_per_s(choice) + host


def cheapest_larger(choice: GpuChoice) -> GpuChoice | None:
    """Return as many of the cheapest GPU type with more memory, or None when there is none."""
    larger = [
        GpuChoice(gpu, choice.count)
        for gpu in CATALOGUE
        if gpu.memory_gb > choice.gpu.memory_gb
        and choice.count <= gpu.max_count
        and gpu.key in GPU_USD_PER_S
    ]
    return min(larger, key=gpu_usd_per_s, default=None)


def next_choice(ran: GpuChoice, ladder: str) -> GpuChoice | None:
    """Return what a run goes on with after out of GPU memory; None at the end of the ladder.

    Args:
        ran: What it ran out of memory on.
        ladder: The GPU types in their order, or `larger` for each next larger one.
    """
    if ladder == LARGER:
        return cheapest_larger(ran)
    rungs = parse_gpu(ladder).choices
    rest = rungs[rungs.index(ran) + 1 :] if ran in rungs else rungs
    return rest[0] if rest else None


def dearest_usd_per_s(request: GpuRequest, cpu_cores: float, memory_gib: float) -> float:
    """Return the price of a container for one second with the dearest of the choices.

    Raises:
        UnknownPriceError: If the table has none for one of them.
    """
    return max(container_usd_per_s(c, cpu_cores, memory_gib) for c in request.choices)
