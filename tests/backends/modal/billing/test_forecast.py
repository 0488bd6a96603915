"""What a run on Modal is going to cost, from its history and its limits."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.backends.modal.billing.forecast import (
    all_attempts,
    earlier_seconds,
    make_forecast,
)
from ml_experiments.backends.modal.billing.prices import GPU_USD_PER_S, container_usd_per_s
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.backends.modal.plan import IDLE_S, STARTUP_TIMEOUT_S, ContainerPlan
from ml_experiments.backends.modal.preflight.import_graph import ImportGraph
from ml_experiments.backends.modal.resources import host_resources
from ml_experiments.runs.spec import RunSpec
from tests.support.run_folders import write_run


def plan_for(gpu: str = "t4", timeout_s: int = 1000, nodes: int = 1) -> ContainerPlan:
    request = parse_gpu(gpu)
    resources = host_resources(request, cpu=2, memory_gib=4)
    return ContainerPlan(request, timeout_s, resources, (), ImportGraph((), (), ()), nodes=nodes)


def max_price(gpu: str) -> float:
    """The price for one second of a GPU and of all that its container's limits allow."""
    [choice] = parse_gpu(gpu).choices
    return container_usd_per_s(choice, 16, 2 * choice.memory_gb)


def write_modal_run(runs_dir: Path, number: int, seconds: float, **given: Any) -> None:
    run_id = f"20261125-1200{number:02}-0000000"
    spec = {"experiment": "train.Train", "backend": "modal", "gpu": "t4", **given}
    status = spec.pop("status", "success")
    folder = write_run(runs_dir, run_id, status=status, **spec)
    record = json.loads(folder.result_file.read_text())
    folder.result_file.write_text(json.dumps({**record, "timings": {"total_s": seconds}}))


def test_without_history_the_estimate_is_from_the_timeout() -> None:
    forecast = make_forecast(plan_for(), [])
    price = GPU_USD_PER_S["t4"] + 2 * 0.0000131 + 4 * 0.00000222
    assert forecast.estimate_usd == pytest.approx(1000 * price)
    assert forecast.estimated_from == "the timeout"


def test_with_history_it_is_the_median_with_the_spread() -> None:
    forecast = make_forecast(plan_for(), [10, 40, 20])
    price = GPU_USD_PER_S["t4"] + 2 * 0.0000131 + 4 * 0.00000222
    found = (forecast.low_usd, forecast.estimate_usd, forecast.high_usd)
    assert found == pytest.approx((10 * price, 20 * price, 40 * price))
    assert forecast.estimated_from == "3 earlier runs"


def test_the_worst_case_has_start_timeout_wait_cpu_and_memory() -> None:
    seconds = STARTUP_TIMEOUT_S + 1000 + IDLE_S
    forecast = make_forecast(plan_for("t4"), [10.0])
    assert forecast.worst_case_usd == pytest.approx(max_price("t4") * seconds)


def test_without_a_price_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(GPU_USD_PER_S, "l4")
    forecast = make_forecast(plan_for("t4,l4"), [10.0])
    assert (forecast.estimate_usd, forecast.worst_case_usd) == (None, None)


@pytest.mark.parametrize("earlier_s", [[], [10.0, 40.0]])
def test_each_of_several_machines_costs_as_much_as_one(earlier_s: list[float]) -> None:
    one, four = (make_forecast(plan_for(nodes=nodes), earlier_s, spec_of()) for nodes in (1, 4))
    for name in ("estimate_usd", "low_usd", "high_usd", "worst_case_usd", "least_usd"):
        once = getattr(one, name)
        assert getattr(four, name) == (once if once is None else pytest.approx(4 * once)), name
    assert four.all_attempts_usd == four.worst_case_usd


def test_a_cap_on_several_machines_leaves_less_time() -> None:
    usd = plan_for().worst_case_usd
    assert usd is not None
    assert plan_for().limited_to(usd).timeout_s == 1000
    limited = plan_for(nodes=2).limited_to(usd)
    assert limited.worst_case_usd is not None
    assert limited.worst_case_usd <= usd
    assert limited.timeout_s < 700


@pytest.mark.parametrize("usd", [0.1, 0.3, 0.4454, 0.7, 1.0])
def test_a_limited_plan_costs_no_more_and_uses_what_it_may(usd: float) -> None:
    limited = plan_for("t4").limited_to(usd)
    assert limited.worst_case_usd is not None
    assert limited.worst_case_usd <= usd
    unused = usd - limited.worst_case_usd
    assert unused < 2 * max_price("t4") or limited.timeout_s == 1000
    assert 60 <= limited.startup_timeout_s <= STARTUP_TIMEOUT_S
    assert limited.is_capped


def test_the_least_that_a_run_takes_is_a_start_and_a_minute() -> None:
    plan = plan_for("t4")
    assert plan.least_usd == pytest.approx(max_price("t4") * (60 + 60 + IDLE_S))
    assert plan.limited_to(plan.least_usd).timeout_s == 60
    short = dataclasses.replace(plan, timeout_s=20)
    assert short.limited_to(short.least_usd).timeout_s == 20


def spec_of(**given: object) -> RunSpec:
    return RunSpec("id", "a:b", {}, 1, "", backend="modal", gpu="t4", **given)  # type: ignore[arg-type]


def test_all_attempts_are_one_on_each_rung_and_the_retries_on_the_dearest() -> None:
    seconds = STARTUP_TIMEOUT_S + 1000 + IDLE_S
    spec = spec_of(
        retries=2, escalate="l4,h100", backend_options={"cpu": 2, "memory_gib": 4}, timeout_s=1000
    )
    forecast = make_forecast(plan_for("t4"), [], spec)
    assert forecast.attempts == 5
    climbed = max_price("t4") + max_price("l4") + 3 * max_price("h100")
    assert forecast.all_attempts_usd == pytest.approx(climbed * seconds)
    capped = make_forecast(plan_for("t4"), [], dataclasses.replace(spec, max_cost=1.0))
    assert capped.all_attempts_usd == 1.0
    plain = make_forecast(plan_for("t4"), [], spec_of())
    assert (plain.attempts, plain.all_attempts_usd) == (1, plain.worst_case_usd)


def test_each_next_larger_gpu_counts_up_to_the_largest() -> None:
    attempts, usd = all_attempts(plan_for("h200"), spec_of(escalate="larger"))
    seconds = STARTUP_TIMEOUT_S + 1000 + IDLE_S
    assert attempts == 2  # a b200 follows
    assert usd == pytest.approx((max_price("h200") + max_price("b200")) * seconds)


def test_history_is_this_experiments_successful_runs_on_the_same_gpu(runs_dir: Path) -> None:
    write_modal_run(runs_dir, 1, 10)
    write_modal_run(runs_dir, 2, 20)
    write_modal_run(runs_dir, 3, 31, status="error")
    write_modal_run(runs_dir, 4, 32, gpu="l4")
    write_modal_run(runs_dir, 5, 33, experiment="other.train.Train")
    write_modal_run(runs_dir, 6, 34, backend="local")
    write_modal_run(runs_dir, 7, 35, nodes=2)
    assert earlier_seconds("train.Train", "t4") == [20, 10]
    assert earlier_seconds("train.Train", "t4", nodes=2) == [35]
    assert earlier_seconds("train.*", "t4") == []


def test_a_damaged_run_is_left_out_of_the_history(runs_dir: Path) -> None:
    for number, seconds in ((1, 10), (2, 20)):
        write_modal_run(runs_dir, number, seconds)
    assert earlier_seconds("train.Train", "t4") == [20, 10]
    spec = runs_dir / "20261125-120002-0000000" / "spec.json"
    content, status = spec.read_bytes(), spec.stat()
    spec.write_bytes(b"?" + content[1:])
    os.utime(spec, ns=(status.st_atime_ns, status.st_mtime_ns))  # the index doesn't notice
    assert earlier_seconds("train.Train", "t4") == [10]


def test_history_that_cannot_be_read_is_none(
    runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs_dir.rmdir()
    runs_dir.write_text("not a folder")
    assert earlier_seconds("train.Train", "t4") == []
    assert "the estimate is from the timeout" in caplog.text
