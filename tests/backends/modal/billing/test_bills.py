"""What Modal has billed, by run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import pytest
from modal.types import BillingReportItem

from ml_experiments.backends.modal.billing import bills as bills_module
from ml_experiments.backends.modal.billing.bills import AppBill, read_bills, share_bills
from ml_experiments.cli.main import main
from ml_experiments.errors import BackendError
from ml_experiments.runner.budget.ledger import Ask, Cap
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runs.folder import RunFolder
from tests.support.run_folders import write_run

HOUR = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
FIRST, SECOND = "20261125-120000-0000001", "20261125-120000-0000002"


def item(app_id: str, cost: str, **tags: str) -> BillingReportItem:
    parts = {"T4": Decimal(cost)}
    return BillingReportItem(app_id, "an app", "main", HOUR, Decimal(cost), parts, tags)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Let Modal's client return a report; returns what it was asked for."""

    def set_report(*items: BillingReportItem) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def answer(**given: Any) -> list[BillingReportItem]:
            asked.append(given)
            return list(items)

        workspace = SimpleNamespace(billing=SimpleNamespace(report=answer))
        monkeypatch.setattr(modal.Workspace, "from_context", lambda: workspace)
        monkeypatch.setattr(bills_module, "require_access", lambda _alternative: None)
        return asked

    return set_report


def test_the_bill_of_an_app_is_the_sum_of_its_hours(
    report: Callable[..., list[dict[str, Any]]],
) -> None:
    asked = report(
        item("ap-1", "0.10", run_id=FIRST, experiment="Train"),
        item("ap-1", "0.20", run_id=FIRST, run_id_2=SECOND),
        item("ap-of-somebody-else", "5", team="red"),
    )
    found = read_bills(HOUR + datetime.timedelta(minutes=17))
    assert found == [AppBill("ap-1", Decimal("0.30"), frozenset({FIRST, SECOND}))]
    assert asked == [{"start": HOUR, "end": None, "resolution": "h", "tag_names": ["*"]}]


def test_a_run_that_its_app_has_no_tag_of_shares_the_bill_as_recorded(
    report: Callable[..., list[dict[str, Any]]],
) -> None:
    report(item("ap-1", "0.30", run_id=FIRST))
    apps = {FIRST: "ap-1", SECOND: "ap-1", "20261125-120000-0000003": None}
    assert read_bills(HOUR, apps=apps) == [
        AppBill("ap-1", Decimal("0.30"), frozenset({FIRST, SECOND}))
    ]


def test_runs_share_the_bill_of_their_app_as_they_estimate() -> None:
    bills = [
        AppBill("ap-1", Decimal("0.30"), frozenset({"a", "b"})),
        AppBill("ap-2", Decimal("0.05"), frozenset({"a"})),  # a resumption
        AppBill("ap-3", Decimal("0.20"), frozenset({"c", "d"})),
    ]
    shares = share_bills(bills, {"a": 2.0, "b": 1.0})
    assert shares == pytest.approx({"a": 0.25, "b": 0.10, "c": 0.10, "d": 0.10})


def test_an_account_without_a_report_is_told_how_to_see_estimates(
    monkeypatch: pytest.MonkeyPatch, report: Callable[..., list[dict[str, Any]]]
) -> None:
    report()

    def refuse() -> None:
        raise modal.exception.PermissionDeniedError("billing is for team workspaces")

    monkeypatch.setattr(modal.Workspace, "from_context", refuse)
    with pytest.raises(BackendError, match="billing is for team workspaces"):
        read_bills(HOUR)


def test_reconcile_puts_the_bill_into_run_folders_lists_and_the_ledger(
    report: Callable[..., list[dict[str, Any]]],
    runs_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    today = f"{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    first, second = f"{today}-000000-0000001", f"{today}-000000-0000002"
    for run_id in (first, second):
        write_run(runs_dir, run_id, backend="modal", gpu="t4", cost_usd=1.0)
    no_cap = Cap("the cap", None, "")
    ask = Ask(first, 1, runs_dir, "a run on t4", 3.0, 0.1)
    [reservation] = open_ledger().reserve([ask], f"run:{first}", no_cap, no_cap)
    open_ledger().settle(reservation, 1.0)
    report(item("ap-1", "1.50", run_id=first))

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["costs", *arguments])
        assert ended.value.code == 0
        return capsys.readouterr().out

    before = command("--by", "gpu")
    assert before.splitlines()[1].split() == ["t4", "2", "3", "$2.00", "estimate"]
    text = command("reconcile")
    assert text == "1 of 2 runs are on Modal's bill: $1.50, estimated at $1.00\n"
    assert RunFolder(runs_dir / first).read_result().cost["billed_usd"] == 1.5
    assert json.loads(command("--by", "gpu", "--json"))["total"]["usd"] == 2.5
    assert open_ledger().spent_usd(f"run:{first}") == 1.5
    assert json.loads(command("reconcile", "--json"))["billed"] == {first: 1.5}


def test_without_runs_there_is_nothing_to_reconcile(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, shown in (
        (["costs"], "no run has cost anything\n"),
        (["costs", "reconcile"], "0 of 0 runs are on Modal's bill: $0.00, estimated at $0.00\n"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert capsys.readouterr().out == shown
