"""Prices."""

from __future__ import annotations

import pytest

from ml_experiments.backends.modal.billing.prices import (
    CPU_USD_PER_CORE_S,
    GPU_USD_PER_S,
    MEMORY_USD_PER_GIB_S,
    cheapest_larger,
    container_usd_per_s,
    dearest_usd_per_s,
    gpu_usd_per_s,
)
from ml_experiments.backends.modal.gpus import CATALOGUE, GpuChoice, parse_gpu
from ml_experiments.errors import UnknownPriceError


def test_every_gpu_type_has_a_price() -> None:
    assert {gpu.key for gpu in CATALOGUE} == set(GPU_USD_PER_S)


def test_a_price_counts_all_gpus_cores_and_memory() -> None:
    [eight] = parse_gpu("h100:8").choices
    assert gpu_usd_per_s(eight) == pytest.approx(8 * 0.001097)
    host = 2 * CPU_USD_PER_CORE_S + 3 * MEMORY_USD_PER_GIB_S
    assert container_usd_per_s(eight, 2, 3) == pytest.approx(8 * 0.001097 + host)


def test_the_dearest_choice_counts() -> None:
    assert dearest_usd_per_s(parse_gpu("t4,b200,l4"), 0, 0) == pytest.approx(0.001736)
    assert dearest_usd_per_s(parse_gpu("t4:8,b200"), 0, 0) == pytest.approx(0.001736)
    assert dearest_usd_per_s(parse_gpu("t4"), 1, 10) > dearest_usd_per_s(parse_gpu("t4"), 0, 0)


def test_a_gpu_type_without_a_price_is_an_error_that_names_those_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(GPU_USD_PER_S, "b200")
    with pytest.raises(UnknownPriceError, match="the GPU type 'b200'; those with"):
        dearest_usd_per_s(parse_gpu("t4,b200"), 1, 1)


def test_a_run_climbs_by_memory_and_takes_the_cheapest_type() -> None:
    [choice] = parse_gpu("t4:2").choices
    climbed = []
    while (larger := cheapest_larger(choice)) is not None:
        climbed.append(str(larger))
        choice = larger
    assert climbed == ["l4:2", "l40s:2", "a100-80gb:2", "rtx-pro-6000:2", "h200:2", "b200:2"]


def test_larger_types_of_one_family_cost_more() -> None:
    def price(name: str) -> float:
        [choice] = parse_gpu(name).choices
        assert isinstance(choice, GpuChoice)
        return gpu_usd_per_s(choice)

    assert price("a100") < price("a100-80gb") < price("h100") < price("h200") < price("b200")
