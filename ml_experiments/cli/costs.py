"""`ml-experiments costs …`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.parameters import JSON
from ml_experiments.cli.runs.finding import filter_of, filter_options, open_registry
from ml_experiments.runs.reports.costs import GROUPINGS, CostSum, sum_costs

if TYPE_CHECKING:
    from ml_experiments.cli.table import Column


@click.group(invoke_without_command=True)
@click.option("--by", type=click.Choice(GROUPINGS), default="day", show_default=True)
@filter_options
@JSON
@click.pass_context
def costs(context: click.Context, /, by: str, as_json: bool, **filters: Any) -> None:
    """Say what runs on Modal have cost, by day, experiment, GPU type, sweep or tag.

    Amounts are estimates, the seconds of the run times its price on its day, until `costs
    reconcile` has read Modal's bill. Days are in UTC. A run with several tags counts for each of
    them.
    """
    if context.invoked_subcommand is not None:
        return
    from ml_experiments.backends.modal.billing.prices import current_prices
    from ml_experiments.backends.modal.billing.rates import refresh_rates

    refresh_rates()
    prices = current_prices()
    groups, total = sum_costs(open_registry().rows(None, filter_of(filters)), by)
    if as_json:
        record: dict[str, Any] = {"by": by, "groups": [group.to_dict() for group in groups]}
        record |= {"prices_of": prices.date, "prices_source": prices.source}
        click.echo(json.dumps({**record, "total": total.to_dict()}))
    elif not groups:
        click.echo("no run has cost anything")
    else:
        _print_sums(by, [*groups, total])
        if total.is_estimate:
            click.echo(
                f"estimated at each run's prices; those of now are of {prices.date}, from "
                f"{prices.source}"
            )


@costs.command()
@click.option("--since", default="30d", show_default=True, help="A date, or an age such as 7d.")
@click.option("--this-hour", is_flag=True, help="Count the hour that isn't over, as far as billed.")
@JSON
def reconcile(since: str, this_hour: bool, as_json: bool) -> None:
    """Read what Modal has billed for runs, and keep it in their folders.

    The workspace must have a billing report. What runs were billed replaces their estimates in
    `costs` and in the ledger that caps are kept with.
    """
    from ml_experiments.backends.modal.billing.bills import app_of, read_bills, share_bills
    from ml_experiments.runner.budget.reserving import record_bill
    from ml_experiments.runs.index.filters import RunFilter
    from ml_experiments.settings import runs_dir

    rows = open_registry().rows(None, RunFilter(backend="modal", since=since))
    ended = {row.run_id: row for row in rows if row.seconds is not None and not row.problem}
    starts = [datetime.datetime.fromisoformat(str(row.created_at)) for row in ended.values()]
    estimates = {run_id: row.cost_usd for run_id, row in ended.items() if row.cost_usd is not None}
    apps = {run_id: app_of(runs_dir() / run_id) for run_id in ended}
    found_bills = read_bills(min(starts), this_hour=this_hour, apps=apps) if starts else []
    bills = share_bills(found_bills, estimates)
    found = {run_id: usd for run_id, usd in bills.items() if run_id in ended}
    for run_id, usd in found.items():
        record_bill(runs_dir(), run_id, usd)
    estimated = sum(estimates.get(run_id, 0.0) for run_id in found)
    if as_json:
        record = {
            "billed": found,
            "estimated_usd": estimated,
            "without_bill": len(ended) - len(found),
        }
        click.echo(json.dumps(record))
        return
    from ml_experiments.backends.forecast import dollars

    click.echo(
        f"{len(found)} of {len(ended)} runs are on Modal's bill: {dollars(sum(found.values()))}, "
        f"estimated at {dollars(estimated)}"
    )


@costs.command()
@click.option("--stop", is_flag=True, help="End the apps whose runs have all ended.")
@JSON
def idle(stop: bool, as_json: bool) -> None:
    """Find apps of runs with containers on Modal, and so costs, though no run goes on in them.

    A warm container waits a minute for another run. An app whose run is not in this runs folder may
    be another person's: it is listed, and --stop leaves it alone.
    """
    import dataclasses

    from ml_experiments.backends.modal.billing.idle import find_idle_apps, stop_apps
    from ml_experiments.cli.table import Column, print_table
    from ml_experiments.settings import runs_dir

    apps = find_idle_apps(runs_dir())
    if apps:
        _bring_runs_of_sweeps_here(runs_dir())
        listed = {app.app_id for app in apps}
        apps = [app for app in find_idle_apps(runs_dir()) if app.app_id in listed]
    stopped = [app for app in apps if app.is_known] if stop else []
    stop_apps(stopped)
    if as_json:
        record = {"apps": [dataclasses.asdict(app) for app in apps]}
        click.echo(json.dumps({**record, "stopped": [app.app_id for app in stopped]}))
        return
    if not apps:
        click.echo("nothing is running without a run")
        return
    columns = (Column("app"), Column("containers", is_right=True), Column("why", is_cut=True))
    print_table(columns, [(app.app_id, str(len(app.containers)), app.why) for app in apps])
    for app in apps:
        if not app.is_known:
            click.echo(f"to end one that is yours: modal app stop {app.app_id}")
    known = sum(app.is_known for app in apps)
    if stop:
        click.echo(f"{len(stopped)} stopped")
    elif known:
        click.echo(f"--stop ends {'it' if known == len(apps) == 1 else f'{known} of them'}")


def _bring_runs_of_sweeps_here(place: Path) -> None:
    """Bring the runs here that controllers of sweeps on Modal have started meanwhile."""
    from ml_experiments.runner.detached.remote_sweeps import bring_sweep_here
    from ml_experiments.runner.sweeps.folder import list_sweeps

    for folder in list_sweeps(place):
        if folder.remote_file.exists():
            bring_sweep_here(folder.path.name, place)


def _print_sums(by: str, sums: Sequence[CostSum]) -> None:
    from ml_experiments.backends.forecast import dollars
    from ml_experiments.cli.table import Column, print_table

    columns: tuple[Column, ...] = (
        Column(by, is_cut=True),
        Column("runs", is_right=True),
        Column("seconds", is_right=True),
        Column("cost", is_right=True),
        Column(""),
    )
    rows = [
        (
            cost.group or f"(no {by})",
            str(cost.runs),
            f"{cost.seconds:,.0f}",
            dollars(cost.usd),
            "estimate" if cost.is_estimate else "billed",
        )
        for cost in sums
    ]
    print_table(columns, rows)
