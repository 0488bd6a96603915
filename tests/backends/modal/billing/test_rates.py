"""The prices of the user's own workspace."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import pytest

from ml_experiments.backends.modal.billing.prices import (
    GPU_USD_PER_S,
    PRICES_SOURCE,
    RATES_SOURCE,
    cheapest_larger,
    container_usd_per_s,
    current_prices,
)
from ml_experiments.backends.modal.billing.rates import FILE_NAME, cached_rates, refresh_rates
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.cli.main import main
from ml_experiments.settings import index_dir, modal_account
from modal_emulator import Emulator

# as Modal's own service names them, for an hour
RATES = {
    "cpu_hour_cost": "0.04730",
    "mem_gib_hour_cost": "0.00800",
    "cpu_hour_cost_sandbox": "0.1419",
    "gpu_hour_cost_t4": "0.59",
    "gpu_hour_cost_a10g": "1.10",
    "gpu_hour_cost_a100_40gb": "2.10",
    "gpu_hour_cost_a100_80gb": "2.50",
    "gpu_hour_cost_rtx6000": "3.03",
    "gpu_hour_cost_h100": "3.95",
}


class Workspace:
    """Stands in for Modal's answer; counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.rates: Mapping[str, str] = RATES
        self.error: Exception | None = None
        monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
        workspace = SimpleNamespace(billing=SimpleNamespace(rates=self.answer))
        monkeypatch.setattr(modal.Workspace, "from_context", lambda: workspace)

    def answer(self) -> dict[str, Decimal]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return {name: Decimal(rate) for name, rate in self.rates.items()}


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return Workspace(monkeypatch)


def age_cache(hours: float) -> None:
    file = index_dir() / FILE_NAME
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    file.write_text(json.dumps({**json.loads(file.read_text()), "read_at": then.isoformat()}))


def test_prices_are_the_workspaces_for_a_day(workspace: Workspace) -> None:
    workspace.rates = {**RATES, "gpu_hour_cost_h100": "1.80"}
    refresh_rates()
    prices = current_prices()
    assert prices.gpus["h100"] == pytest.approx(1.80 / 3600)
    assert prices.gpus["rtx-pro-6000"] == pytest.approx(3.03 / 3600)
    assert prices.gpus["l4"] == GPU_USD_PER_S["l4"]  # the rates have none
    assert prices.source == RATES_SOURCE
    assert prices.date == datetime.datetime.now(datetime.UTC).date().isoformat()
    [two] = parse_gpu("h100:2").choices
    host = 3 * 0.0473 + 4 * 0.008
    assert container_usd_per_s(two, 3, 4) == pytest.approx((2 * 1.80 + host) / 3600)
    [smaller] = parse_gpu("l40s").choices  # what is cheapest changes with the prices
    assert str(cheapest_larger(smaller)) == "h100"
    refresh_rates()
    assert workspace.asked == 1
    age_cache(25)
    assert cached_rates() is None
    refresh_rates()
    assert workspace.asked == 2


def test_another_token_has_prices_of_its_own(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_rates()
    before = modal_account()
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-2")
    assert modal_account() != before
    assert cached_rates() is None
    refresh_rates()
    assert workspace.asked == 2


def test_without_a_token_the_table_of_the_package_counts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_rates()
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    monkeypatch.setenv("MODAL_CONFIG_PATH", "/nowhere/modal.toml")
    assert (modal_account(), cached_rates()) == (None, None)
    refresh_rates()
    assert workspace.asked == 1
    assert current_prices().source == PRICES_SOURCE


def test_a_workspace_that_may_not_be_asked_is_asked_again_an_hour_later(
    workspace: Workspace,
) -> None:
    workspace.error = modal.exception.PermissionDeniedError("billing is for team workspaces")
    for _ in range(2):
        refresh_rates()
        assert current_prices().source == PRICES_SOURCE
    assert workspace.asked == 1
    age_cache(1.1)
    refresh_rates()
    assert workspace.asked == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"gpu_hour_cost_h100": "0.001097"},  # for a second
        {"cpu_hour_cost": "4.73"},  # cents
        {"cpu_hour_cost": "NaN"},
    ],
)
def test_rates_in_another_unit_are_not_taken_for_prices(
    workspace: Workspace, changed: dict[str, str]
) -> None:
    workspace.rates = {**RATES, **changed}
    refresh_rates()
    assert current_prices().source == PRICES_SOURCE


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"account": 1}'])
def test_a_damaged_cache_is_read_anew(workspace: Workspace, content: str) -> None:
    index_dir().mkdir(parents=True)
    (index_dir() / FILE_NAME).write_text(content)
    assert cached_rates() is None
    refresh_rates()
    assert current_prices().source == RATES_SOURCE


def test_prices_that_can_not_be_cached_stop_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ML_EXPERIMENTS_INDEX_DIR", str(tmp_path / "file"))
    refresh_rates()
    assert current_prices().source == PRICES_SOURCE


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    with pytest.raises(SystemExit):
        main([*arguments])
    return capsys.readouterr().out


def test_gpus_and_costs_name_date_and_source(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.rates = {**RATES, "gpu_hour_cost_h100": "1.80"}
    text = shown(capsys, "gpus")
    assert "1.80" in text
    assert f"from {RATES_SOURCE}; CPU and memory come on top" in text
    assert {row["prices_source"] for row in json.loads(shown(capsys, "gpus", "--json"))} == {
        RATES_SOURCE
    }
    assert json.loads(shown(capsys, "costs", "--json"))["prices_source"] == RATES_SOURCE
    assert workspace.asked == 1


def test_the_local_modal_server_has_the_rates_of_modal(modal_emulator: Emulator) -> None:
    refresh_rates()
    prices = current_prices()
    assert prices.source == RATES_SOURCE
    assert prices.gpus == pytest.approx(GPU_USD_PER_S)
