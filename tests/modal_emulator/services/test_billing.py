"""What containers cost, by the server's own record of the seconds for which they ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from modal_emulator.services.billing import RATES

register_pickle_by_value(sys.modules[__name__])


def nap_for(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(scope="module")
def spent() -> Iterator[Emulator]:
    """A server on which two H100s and half a core were used for a second, by an app with tags."""
    with Emulator() as emulator, connected(emulator):
        app = modal.App("spends", tags={"team": "vision", "run": "1"})
        options: dict[str, Any] = {"gpu": "H100:2", "cpu": 0.5, "memory": 2048}
        nap = app.function(serialized=True, name="nap", **options)(nap_for)
        with app.run():
            nap.remote(1)
        yield emulator


def test_the_report_has_the_seconds_of_each_container_by_resource(spent: Emulator) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    billing = modal.Workspace.from_context().billing
    (item,) = billing.report(
        start=today, end=today + timedelta(days=1), resolution="d", tag_names=["team"]
    )
    assert (item.description, item.environment_name) == ("spends", "main")
    assert item.interval_start == today
    assert item.tags == {"team": "vision"}
    assert item.cost == sum(item.cost_by_resource.values())
    seconds = item.cost_by_resource["H100"] / (2 * RATES["H100"])
    assert 1 < seconds < 60
    assert round(item.cost_by_resource["CPU"] / (RATES["CPU"] / 2), 2) == round(seconds, 2)
    assert round(item.cost_by_resource["Memory"] / (RATES["Memory"] * 2), 1) == round(seconds, 1)


def test_intervals_that_are_not_over_at_the_end_are_left_out(spent: Emulator) -> None:
    billing = modal.Workspace.from_context().billing
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    assert billing.report(start=hour - timedelta(hours=5), end=now, resolution="h") == []
    found = billing.report(
        start=hour - timedelta(hours=1), end=hour + timedelta(hours=1), resolution="h"
    )
    assert [each.description for each in found] == ["spends"] * len(found)
    assert found


def test_the_summary_is_the_sum_of_the_month(spent: Emulator) -> None:
    summary = modal.Workspace.from_context().billing.summary()
    assert summary.billed_cost == summary.metered_cost > Decimal(0)
    assert summary.metered_cost == sum(summary.metered_cost_breakdown.values())
    rates = modal.Workspace.from_context().billing.rates()
    assert rates["gpu_hour_cost_h100"] == 3600 * RATES["H100"]
    assert len(rates) == len(RATES)


@pytest.mark.parametrize(
    ("command", "key"),
    [("report --for today --show-resources", "cost"), ("rates", ""), ("summary", "")],
)
def test_the_billing_commands_answer(spent: Emulator, command: str, key: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modal", "billing", *command.split(), "--json"],
        env={**os.environ, **spent.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer
    assert not key or {each["resource"] for each in answer} == {"H100", "CPU", "Memory"}
