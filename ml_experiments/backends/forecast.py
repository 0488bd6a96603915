"""What a run is going to cost, as it is known before anything starts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

_MIN_SHOWN_USD = 0.0001


@dataclass(frozen=True)
class Forecast:
    """What a run is going to cost, in US dollars; amounts are for one attempt unless they say so.

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
        attempts: How many attempts there may be: retries, and larger GPU types.
        all_attempts_usd: The most that all of them can cost together; None where no price is
            known.
        runs: How many runs `estimate_usd` and `all_attempts_usd` are for; more than one in a sweep.
    """

    estimate_usd: float | None
    worst_case_usd: float | None
    least_usd: float | None
    prices_of: str
    prices_source: str
    low_usd: float | None = None
    high_usd: float | None = None
    earlier_runs: int = 0
    attempts: int = 1
    all_attempts_usd: float | None = None
    runs: int = 1

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
            return f"no price of the GPU type is known in the prices of {self.prices_of}"
        spread = ""
        if self.low_usd is not None and self.high_usd is not None and self.earlier_runs > 1:
            spread = f"{dollars(self.low_usd)} to {dollars(self.high_usd)}, "
        all_usd = self.all_attempts_usd
        at_most_usd = self.worst_case_usd if all_usd is None else all_usd
        attempts = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        attempts += " each" if attempts and self.runs > 1 else ""
        runs = f" for {self.runs:,} runs" if self.runs > 1 else ""
        return (
            f"about {dollars(self.estimate_usd)}{runs} ({spread}from {self.estimated_from}), "
            f"at most {dollars(at_most_usd)}{attempts}"
        )

    def for_runs(self, count: int, max_usd: float | None) -> Forecast:
        """Return what so many runs like this one are going to cost, within a cap if given."""
        if self.estimate_usd is None or self.worst_case_usd is None:
            return dataclasses.replace(self, runs=count)
        all_usd = self.worst_case_usd if self.all_attempts_usd is None else self.all_attempts_usd
        limit_usd = math.inf if max_usd is None else max_usd
        return dataclasses.replace(
            self,
            estimate_usd=min(self.estimate_usd * count, limit_usd),
            all_attempts_usd=min(all_usd * count, limit_usd),
            low_usd=None if self.low_usd is None else self.low_usd * count,
            high_usd=None if self.high_usd is None else self.high_usd * count,
            runs=count,
        )


def dollars(usd: float) -> str:
    """Return an amount as `$1.23`; below a cent with four digits after the point."""
    if 0 < usd < _MIN_SHOWN_USD:
        return f"<${_MIN_SHOWN_USD}"
    return f"${usd:,.2f}" if usd >= 0.00995 or usd == 0 else f"${usd:.4f}"
