"""What runs have cost, summed by day, experiment, GPU type, sweep or tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_experiments.runs.index.rows import RunRow

GROUPINGS = ("day", "experiment", "gpu", "sweep", "tag")


@dataclass(frozen=True)
class CostSum:
    """What a group of runs has cost, in US dollars.

    Attributes:
        group: Such as `2026-11-25` or `h100`; empty for runs that have none.
        runs: How many there are.
        seconds: How long they executed together.
        usd: What they have cost: by Modal's bill where it was read, else by estimate.
        billed_runs: How many of them have Modal's bill.
    """

    group: str
    runs: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    billed_runs: int = 0

    @property
    def is_estimate(self) -> bool:
        """Whether some of it is estimated."""
        return self.billed_runs < self.runs

    def to_dict(self) -> dict[str, Any]:
        """Return the sum as JSON."""
        return {**dataclasses.asdict(self), "is_estimate": self.is_estimate}


def sum_costs(rows: Iterable[RunRow], by: str) -> tuple[list[CostSum], CostSum]:
    """Return what groups of runs have cost, and what all have; runs that cost nothing are left out.

    Args:
        rows: The runs.
        by: One of `GROUPINGS`. A run with several tags counts in the group of each.

    Returns:
        The groups, days in their order and others with the dearest first, and the total.
    """
    sums: dict[str, CostSum] = {}
    total = CostSum("total")
    for row in rows:
        usd = row.cost_usd if row.billed_usd is None else row.billed_usd
        if usd is None:
            continue
        total = _add(total, row, usd)
        for group in _groups(row, by):
            sums[group] = _add(sums.get(group, CostSum(group)), row, usd)
    if by == "day":
        return sorted(sums.values(), key=lambda cost: cost.group), total
    return sorted(sums.values(), key=lambda cost: (-cost.usd, cost.group)), total


def _add(cost: CostSum, row: RunRow, usd: float) -> CostSum:
    return dataclasses.replace(
        cost,
        runs=cost.runs + 1,
        seconds=cost.seconds + (row.seconds or 0.0),
        usd=cost.usd + usd,
        billed_runs=cost.billed_runs + (row.billed_usd is not None),
    )


def _groups(row: RunRow, by: str) -> Iterator[str]:
    if by == "tag":
        tags = sorted(
            f"{path.removeprefix('tags.')}={value}"
            for path, value in row.values.items()
            if path.startswith("tags.")
        )
        yield from tags or [""]
    elif by == "day":
        yield (row.created_at or "")[:10]
    else:
        yield getattr(row, by) or ""
