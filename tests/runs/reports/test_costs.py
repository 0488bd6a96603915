"""What groups of runs have cost."""

from __future__ import annotations

import pytest

from ml_experiments.runs.index.rows import RunRow
from ml_experiments.runs.reports.costs import CostSum, sum_costs

ROWS = [
    RunRow(
        "r1",
        experiment="a.Train",
        gpu="t4",
        sweep="s1",
        created_at="2026-11-25T23:59:00.000+00:00",
        seconds=10,
        cost_usd=1.0,
        values={"tags.team": "red", "tags.sweep": "s1", "config.lr": 0.1},
    ),
    RunRow(
        "r2",
        experiment="a.Train",
        gpu="h100",
        created_at="2026-11-24T00:00:00.000+00:00",
        seconds=20,
        cost_usd=2.0,
        billed_usd=3.0,
    ),
    RunRow("r3", experiment="a.Local", created_at="2026-11-24T00:00:00.000+00:00", seconds=5),
    RunRow("r4", problem="unreadable"),
]


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("day", [("2026-11-24", 3.0), ("2026-11-25", 1.0)]),
        ("experiment", [("a.Train", 4.0)]),
        ("gpu", [("h100", 3.0), ("t4", 1.0)]),
        ("sweep", [("", 3.0), ("s1", 1.0)]),
        ("tag", [("", 3.0), ("sweep=s1", 1.0), ("team=red", 1.0)]),
    ],
)
def test_costs_are_summed_by_group(by: str, groups: list[tuple[str, float]]) -> None:
    found, total = sum_costs(ROWS, by)
    assert [(cost.group, cost.usd) for cost in found] == groups
    assert total == CostSum("total", runs=2, seconds=30, usd=4.0, billed_runs=1)


def test_a_sum_is_an_estimate_until_all_of_it_was_billed() -> None:
    found, total = sum_costs(ROWS, "gpu")
    assert [cost.is_estimate for cost in found] == [False, True]
    assert total.to_dict()["is_estimate"]
