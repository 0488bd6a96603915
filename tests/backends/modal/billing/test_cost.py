"""The price of a run."""

from __future__ import annotations

import pytest

from ml_experiments.backends.modal.billing.cost import choice_that_ran, cost_of
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.runs.manifest import Manifest, ModalPlace
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec


@pytest.mark.parametrize(
    ("requested", "devices", "ran"),
    [
        ("h100,a100-80gb", ["NVIDIA A100-SXM4-80GB"], "a100-80gb"),
        ("h100,a100-80gb", ["NVIDIA H100 80GB HBM3"], "h100"),
        ("a10g,a100", ["NVIDIA A10"], "a10g"),
        ("t4,l4", ["Tesla T4"], "t4"),
        ("l4,l40s", ["NVIDIA L40S"], "l40s"),
        ("t4,rtx-pro-6000", ["NVIDIA RTX PRO 6000 Blackwell Server Edition"], "rtx-pro-6000"),
        ("a100", ["NVIDIA A100-SXM4-80GB"], "a100"),  # upgraded by Modal, at the same price
        ("t4,b200", [], "b200"),
    ],
)
def test_the_price_is_that_of_the_device_that_ran(
    requested: str, devices: list[str], ran: str
) -> None:
    assert str(choice_that_ran(parse_gpu(requested), devices)) == ran


def test_all_machines_of_a_run_are_paid_for() -> None:
    timings = {"total_s": 10.0, "container_s": 30.0}
    result = RunResult("id", RunStatus.SUCCESS, "a:b", timings=timings)
    manifest = Manifest(modal=ModalPlace(cpu_cores=(2, 16), memory_mib=(4096, 32768)))
    one, three = (
        cost_of(result, RunSpec("id", "a:b", {}, 1, "", gpu="t4", nodes=nodes), manifest)
        for nodes in (1, 3)
    )
    assert set(one) == {"estimate_usd", "at_most_usd"}
    assert three == pytest.approx({name: 3 * usd for name, usd in one.items()})
