"""Modal's prices, and the most that a run can cost.

They are the workspace's own, as `rates.py` has read them in the last day, and otherwise those on
the date below, which are copied by hand from the page below. Pinning a region multiplies them by
1.5 to 1.75, which this package never does.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from ml_experiments.backends.modal.billing.rates import Rates, cached_rates
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


# how far a price may be from the one above, up or down; more is another unit, not another price
_MAX_CHANGE = 10
_HOUR_S = 3600
RATES_SOURCE = "the rates of this Modal workspace"
# GPU type -> the end of the name of its rate, where that is not its own name
_RATE_NAMES = {"a100": "a100_40gb", "rtx-pro-6000": "rtx6000"}


@dataclass(frozen=True)
class Prices:
    """What a second costs, in US dollars.

    Attributes:
        gpus: By GPU type.
        cpu_core: Of a CPU core.
        memory_gib: Of a GiB of memory.
        date: When they were looked up, in ISO 8601.
        source: Where.
    """

    gpus: Mapping[str, float]
    cpu_core: float
    memory_gib: float
    date: str
    source: str


def current_prices() -> Prices:
    """Return the workspace's prices if they were read in the last day, else those of the table."""
    rates = cached_rates()
    found = None if rates is None else _prices_from(rates)
    return found or Prices(
        GPU_USD_PER_S,
        CPU_USD_PER_CORE_S,
        MEMORY_USD_PER_GIB_S,
        PRICES_CHECKED.isoformat(),
        PRICES_SOURCE,
    )


def _prices_from(rates: Rates) -> Prices | None:
    """Return prices from a workspace's rates; None if these are not understood."""
    per_hour = rates.usd
    known = {
        **{_rate_name(key): usd for key, usd in GPU_USD_PER_S.items()},
        "cpu_hour_cost": CPU_USD_PER_CORE_S,
        "mem_gib_hour_cost": MEMORY_USD_PER_GIB_S,
    }
    found = {name: per_hour[name] / _HOUR_S for name in known if name in per_hour}
    if not {"cpu_hour_cost", "mem_gib_hour_cost"} <= found.keys() or any(
        not known[name] / _MAX_CHANGE <= usd <= known[name] * _MAX_CHANGE
        for name, usd in found.items()
    ):
        return None
    gpus = {gpu.key: _rate_name(gpu.key) for gpu in CATALOGUE}
    own = {key: per_hour[name] / _HOUR_S for key, name in gpus.items() if name in per_hour}
    return Prices(
        {**GPU_USD_PER_S, **own},
        found["cpu_hour_cost"],
        found["mem_gib_hour_cost"],
        rates.date,
        RATES_SOURCE,
    )


def _rate_name(key: str) -> str:
    return f"gpu_hour_cost_{_RATE_NAMES.get(key, key.replace('-', '_'))}"


def gpu_usd_per_s(choice: GpuChoice) -> float:
    """Return the price of all GPUs of a choice for one second.

    Raises:
        UnknownPriceError: If none is known.
    """
    prices = current_prices()
    try:
        return prices.gpus[choice.gpu.key] * choice.count
    except KeyError as e:
        raise UnknownPriceError(
            f"the prices of {prices.date} have none for the GPU type {choice.gpu.key!r}; those "
            f"with one are {', '.join(prices.gpus)}"
        ) from e


def container_usd_per_s(choice: GpuChoice, cpu_cores: float, memory_gib: float) -> float:
    """Return the price of a container for one second: its GPUs, CPU cores and memory."""
    return gpu_usd_per_s(choice) + host_usd_per_s(cpu_cores, memory_gib)


def host_usd_per_s(cpu_cores: float, memory_gib: float) -> float:
    """Return the price of CPU cores and memory for one second."""
    prices = current_prices()
    return cpu_cores * prices.cpu_core + memory_gib * prices.memory_gib


def cheapest_larger(choice: GpuChoice) -> GpuChoice | None:
    """Return as many of the cheapest GPU type with more memory, or None when there is none."""
    prices = current_prices()
    larger = [
        GpuChoice(gpu, choice.count)
        for gpu in CATALOGUE
        if gpu.memory_gb > choice.gpu.memory_gb
        and choice.count <= gpu.max_count
        and gpu.key in prices.gpus
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
