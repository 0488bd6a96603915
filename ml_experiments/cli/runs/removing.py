"""`ml-experiments runs rm`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.runs.finding import filter_of, filter_options, open_registry

if TYPE_CHECKING:
    from ml_experiments.runs.removal import RemovalPlan

_MAX_SHOWN = 20


@click.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
@filter_options
@click.option(
    "--from",
    "place",
    type=click.Choice(["local", "modal", "both"]),
    default="local",
    show_default=True,
    help="This machine's folders, those on Modal's volume, or both.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rm(
    run_ids: tuple[str, ...], place: str, dry_run: bool, yes: bool, as_json: bool, **filters: Any
) -> int:
    """Remove runs, named or filtered, with everything in their folders.

    A run that goes on is never removed. Exit code 1 when one that was named was kept, or one
    could not be removed.
    """
    from ml_experiments.runs.removal import plan_removal, remove_leftovers
    from ml_experiments.settings import runs_dir

    registry, run_filter = open_registry(), filter_of(filters)
    if bool(run_ids) is not run_filter.is_empty:
        raise click.UsageError(
            "name runs or filter them (--status error, --until 30d), "
            + ("not both" if run_ids else "one of the two")
        )
    names = [registry.find(run).path.name for run in run_ids] or [
        row.run_id for row in registry.rows(run_filter=run_filter)
    ]
    plan = plan_removal(runs_dir(), names)
    on_modal: dict[str, int] = {}
    if place != "local":
        from ml_experiments.backends.modal.remote_runs import sizes_on_volume

        on_modal = sizes_on_volume(run.run_id for run in plan.runs if run.is_on_modal)
    is_nothing = not plan.runs or (place == "modal" and not on_modal)
    if not dry_run and not is_nothing and not yes:
        if as_json or not sys.stdin.isatty():
            if not as_json:
                _print_plan(plan, place, on_modal)
            raise click.UsageError("no terminal to confirm on: give --yes, or --dry-run")
        _print_plan(plan, place, on_modal)
        click.confirm("Remove this?", abort=True)
    failed: dict[str, str] = {}
    is_done = not dry_run and not is_nothing
    if is_done:
        remove_leftovers(runs_dir())
        failed = _remove(plan, place, on_modal)
    if as_json:
        record = {**plan.to_dict(), "on_modal": on_modal, "removed": is_done, "failed": failed}
        click.echo(json.dumps(record))
    else:
        if not is_done or yes:
            _print_plan(plan, place, on_modal)
        for run_id, reason in failed.items():
            click.echo(f"not removed: {run_id}: {reason}", err=True)
        if is_done:
            click.echo(f"removed {len(plan.runs) - len(failed)}")
    return int(bool(failed) or bool(run_ids and plan.kept))


def _remove(plan: RemovalPlan, place: str, on_modal: dict[str, int]) -> dict[str, str]:
    """Remove what was planned; return what could not be removed, and why."""
    from ml_experiments.errors import RunFolderError
    from ml_experiments.runs.removal import remove_run

    if place != "local":  # first: the local folder says that there is one
        from ml_experiments.backends.modal.remote_runs import remove_from_volume
        from ml_experiments.runner.detached.remote_sweeps import remove_copies_there

        remove_from_volume(on_modal)
        remove_copies_there({run.run_id for run in plan.runs}, plan.runs_dir.resolve())
    failed: dict[str, str] = {}
    for run in plan.runs if place != "modal" else ():
        try:
            remove_run(plan.runs_dir, run.run_id)
        except RunFolderError as e:
            failed[run.run_id] = str(e)
    return failed


def _print_plan(plan: RemovalPlan, place: str, on_modal: dict[str, int]) -> None:
    from ml_experiments.cli.table import Column, print_table

    shown = [run for run in plan.runs if place != "modal" or run.run_id in on_modal]
    columns = [Column("run")]
    columns += [Column("MB here", is_right=True)] if place != "modal" else []
    columns += [Column("MB on Modal", is_right=True)] if place != "local" else []
    rows = []
    for run in shown[:_MAX_SHOWN]:
        row = [run.run_id]
        row += [f"{run.size_bytes / 1e6:.2f}"] if place != "modal" else []
        there = on_modal.get(run.run_id)
        row += ["" if there is None else f"{there / 1e6:.2f}"] if place != "local" else []
        rows.append(row)
    if rows:
        print_table(columns, rows)
    if len(shown) > _MAX_SHOWN:
        click.echo(f"… {len(shown) - _MAX_SHOWN} more")
    total = (plan.size_bytes if place != "modal" else 0) + sum(on_modal.values())
    click.echo(f"{len(shown)} run{'' if len(shown) == 1 else 's'}, {total / 1e6:.2f} MB")
    for run_id, reason in plan.kept:
        click.echo(f"kept: {run_id}: {reason}")
    also = [run for run in shown if run.is_on_modal]
    if place == "local" and also:
        click.echo(f"{len(also)} of them may also be on Modal's volume: --from both")
