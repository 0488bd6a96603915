"""What Modal has billed for runs: its billing report, by the tags of the runs' apps."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import modal

from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.errors import RunFolderError
from ml_experiments.runs.folder import RunFolder

_RUN_TAG = re.compile(r"run_id(_\d+)?")
_WITHOUT = "what runs have cost by estimate: ml-experiments costs"


@dataclass(frozen=True)
class AppBill:
    """What Modal has billed for one app.

    Attributes:
        app_id: The app.
        usd: In all intervals that the report has.
        run_ids: The runs that it was for.
    """

    app_id: str
    usd: Decimal = Decimal(0)
    run_ids: frozenset[str] = field(default_factory=frozenset)


def app_of(run: Path) -> str | None:
    """Return the app in which a run was executed, by its folder; None where that isn't known."""
    try:
        place = RunFolder(run).read_manifest().modal
    except RunFolderError:
        return None
    return None if place is None else place.app_id


def read_bills(
    since: datetime.datetime,
    *,
    this_hour: bool = False,
    apps: Mapping[str, str | None] | None = None,
) -> list[AppBill]:
    """Return what Modal has billed for apps of runs, in the hours that are over.

    Args:
        since: From when on.
        this_hour: Whether the hour that is not over counts too, as far as it is billed.
        apps: The apps of runs as they are recorded; an app has tags of its first runs only.

    Raises:
        AuthError: If there is no token, or Modal rejected it.
        BackendError: If this account has no billing report, or Modal can't be reached.
    """
    require_access(_WITHOUT)
    start = _hour_of(since)
    next_hour = _hour_of(datetime.datetime.now(datetime.UTC)) + datetime.timedelta(hours=1)
    with platform_errors("read its billing report", _WITHOUT):
        report = modal.Workspace.from_context().billing.report(
            start=start,
            end=next_hour if this_hour else None,
            resolution="h",
            tag_names=["*"],
        )
    bills: dict[str, AppBill] = {}
    for item in report:
        run_ids = {value for name, value in item.tags.items() if _RUN_TAG.fullmatch(name)}
        bill = bills.get(item.object_id, AppBill(item.object_id))
        bills[item.object_id] = dataclasses.replace(
            bill, usd=bill.usd + item.cost, run_ids=bill.run_ids | run_ids
        )
    for run_id, app_id in (apps or {}).items():
        if app_id in bills:
            bill = bills[app_id]
            bills[app_id] = dataclasses.replace(bill, run_ids=bill.run_ids | {run_id})
    return [bill for bill in bills.values() if bill.run_ids]


def _hour_of(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)


def share_bills(bills: Iterable[AppBill], estimates: Mapping[str, float]) -> dict[str, float]:
    """Return what each run was billed; runs that share an app share its bill as they estimate.

    Args:
        bills: Those of the apps.
        estimates: The estimated cost of each run. A run without one has no share where another
            run of its app has one.
    """
    shares: dict[str, float] = {}
    for bill in bills:
        total = sum(estimates.get(run_id, 0.0) for run_id in bill.run_ids)
        for run_id in bill.run_ids:
            part = estimates.get(run_id, 0.0) / total if total else 1 / len(bill.run_ids)
            shares[run_id] = shares.get(run_id, 0.0) + float(bill.usd) * part
    return shares
