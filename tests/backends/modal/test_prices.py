"""Prices, and the most that a run can cost."""

from __future__ import annotations

import pytest

from ml_experiments.backends.modal.gpus import CATALOGUE, GpuChoice, parse_gpu
from ml_experiments.backends.modal.prices import (
    CPU_USD_PER_CORE_S,
    GPU_USD_PER_S,
    MEMORY_USD_PER_GIB_S,
    container_usd_per_s,
    gpu_usd_per_s,
    worst_case_usd,
)


def test_every_gpu_type_has_a_price() -> None:
    assert {gpu.key for gpu in CATALOGUE} == set(GPU_USD_PER_S)


def test_a_price_counts_all_gpus_cores_and_memory() -> None:
    [eight] = parse_gpu("h100:8").choices
    assert gpu_usd_per_s(eight) == pytest.approx(8 * 0.001097)
    host = 2 * CPU_USD_PER_CORE_S + 3 * MEMORY_USD_PER_GIB_S
    assert container_usd_per_s(eight, 2, 3) == pytest.approx(8 * 0.001097 + host)


def test_the_worst_case_is_the_dearest_choice_for_all_of_the_timeout() -> None:
    assert worst_case_usd(parse_gpu("t4,b200,l4"), 3600, 0, 0) == pytest.approx(0.001736 * 3600)
    assert worst_case_usd(parse_gpu("t4:8,b200"), 10, 0, 0) == pytest.approx(0.001736 * 10)
    assert worst_case_usd(parse_gpu("t4"), 100, 1, 10) > worst_case_usd(parse_gpu("t4"), 100, 0, 0)


def test_larger_types_of_one_family_cost_more() -> None:
    def price(name: str) -> float:
        [choice] = parse_gpu(name).choices
        assert isinstance(choice, GpuChoice)
        return gpu_usd_per_s(choice)

    assert price("a100") < price("a100-80gb") < price("h100") < price("h200") < price("b200")
