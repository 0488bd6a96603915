"""What a run of the contract can cost at most."""

from __future__ import annotations

from ml_experiments.backends.modal.billing.prices import (
    CPU_USD_PER_CORE_S,
    GPU_USD_PER_S,
    MEMORY_USD_PER_GIB_S,
)

# each function of apps/contract_app.py and each variant of one has at most two, for the whole time
MAX_CONTAINERS = 60
MAX_RUN_S = 900
CONTAINER_CORES, CONTAINER_GIB = 1.0, 0.5
GPU_TIMEOUT_S = 60


def max_cost_usd(*, gpu: bool) -> float:
    """Return the highest possible cost of one run of the contract on Modal."""
    container = CONTAINER_CORES * CPU_USD_PER_CORE_S + CONTAINER_GIB * MEMORY_USD_PER_GIB_S
    cost = MAX_CONTAINERS * MAX_RUN_S * container
    return cost + (GPU_TIMEOUT_S * (GPU_USD_PER_S["t4"] + container) if gpu else 0.0)
