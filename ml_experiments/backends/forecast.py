"""What a run is going to cost, as it is known before anything starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Forecast:
    """What one attempt at a run is going to cost, in US dollars.

    Attributes:
        estimate_usd: The median of earlier runs of the experiment on this GPU type; without any,
            the price of a run that takes all of its timeout. None where no price is known.
        low_usd: The cheapest of the earlier runs; None without any.
        high_usd: The dearest of them; None without any.
        earlier_runs: How many there are.
        worst_case_usd: The most that it can cost; None where no price is known.
        least_usd: With less than that, it is not worth a start.
        prices_of: The date of the prices.
        prices_source: Where they are from.
    """

    estimate_usd: float | None
    worst_case_usd: float | None
    least_usd: float | None
    prices_of: str
    prices_source: str
    low_usd: float | None = None
    high_usd: float | None = None
    earlier_runs: int = 0

    @property
    def estimated_from(self) -> str:
        """What the estimate comes from."""
        if not self.earlier_runs:
            return "the timeout"
        return "1 earlier run" if self.earlier_runs == 1 else f"{self.earlier_runs} earlier runs"

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON."""
        return {**dataclasses.asdict(self), "estimated_from": self.estimated_from}

    def __str__(self) -> str:
        if self.estimate_usd is None or self.worst_case_usd is None:
            return "no price is known for it"
        spread = ""
        if self.low_usd is not None and self.high_usd is not None and self.earlier_runs > 1:
            spread = f"{dollars(self.low_usd)} to {dollars(self.high_usd)}, "
        return (
            f"about {dollars(self.estimate_usd)} ({spread}from {self.estimated_from}), at most "
            f"{dollars(self.worst_case_usd)}"
        )


def dollars(usd: float) -> str:
    """Return an amount as `$1.23`; below a cent with four digits after the point."""
    return f"${usd:,.2f}" if usd >= 0.00995 or usd == 0 else f"${usd:.4f}"
