"""What a run is going to cost, as it is shown."""

from __future__ import annotations

import pytest

from ml_experiments.backends.forecast import Forecast, dollars

PRICES = ("2026-10-01", "https://modal.com/pricing")
UNPRICED = "no price of the GPU type is known in the prices of 2026-10-01"


@pytest.mark.parametrize(
    ("forecast", "shown"),
    [
        (Forecast(0.2, 3.0, 0.1, *PRICES), "about $0.20 (from the timeout), at most $3.00"),
        (
            Forecast(0.2, 3.0, 0.1, *PRICES, low_usd=0.05, high_usd=0.3, earlier_runs=5),
            "about $0.20 ($0.05 to $0.30, from 5 earlier runs), at most $3.00",
        ),
        (
            Forecast(0.2, 3.0, 0.1, *PRICES, low_usd=0.2, high_usd=0.2, earlier_runs=1),
            "about $0.20 (from 1 earlier run), at most $3.00",
        ),
        (Forecast(None, None, None, *PRICES), UNPRICED),
    ],
)
def test_it_says_where_the_estimate_comes_from(forecast: Forecast, shown: str) -> None:
    assert str(forecast) == shown


def test_all_attempts_of_all_runs_of_a_sweep_are_counted() -> None:
    one = Forecast(0.2, 3.0, 0.1, *PRICES, attempts=4, all_attempts_usd=12.0)
    assert str(one) == "about $0.20 (from the timeout), at most $12.00 in 4 attempts"
    many = one.for_runs(40, None)
    assert str(many) == (
        "about $8.00 for 40 runs (from the timeout), at most $480.00 in 4 attempts each"
    )
    capped = one.for_runs(40, 5.0)
    assert (capped.estimate_usd, capped.all_attempts_usd) == (5.0, 5.0)
    unpriced = Forecast(None, None, None, *PRICES).for_runs(40, 5.0)
    assert str(unpriced) == UNPRICED


def test_as_json_it_names_date_and_source_of_the_prices() -> None:
    record = Forecast(0.2, 3.0, 0.1, *PRICES, earlier_runs=2).to_dict()
    assert record["estimated_from"] == "2 earlier runs"
    assert (record["prices_of"], record["prices_source"]) == PRICES


@pytest.mark.parametrize(
    ("usd", "shown"),
    [(0, "$0.00"), (1e-5, "<$0.0001"), (0.00012, "$0.0001"), (0.1, "$0.10"), (1234.5, "$1,234.50")],
)
def test_small_amounts_have_more_digits(usd: float, shown: str) -> None:
    assert dollars(usd) == shown
