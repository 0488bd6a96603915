"""`ml-experiments runs list`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.runs.finding import filter_of, filter_options, open_registry
from ml_experiments.cli.runs.syncing import end_lost_jobs, with_remote_statuses

if TYPE_CHECKING:
    from ml_experiments.runs.index.rows import RunRow


@click.command("list")
@filter_options
@click.option("--sort", help="A column or a value such as results.loss; -results.loss turns it.")
@click.option("--columns", help="What to show, such as run_id,config.lr,results.loss.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="The first so many; 0 for all.",
)
@click.option(
    "--offline", is_flag=True, help="Do not ask Modal or Slurm which runs have ended there."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def list_(
    sort: str | None,
    columns: str | None,
    limit: int,
    offline: bool,
    as_json: bool,
    as_csv: bool,
    **filters: Any,
) -> None:
    """List runs, the newest first.

    The columns are run_id, status, experiment, name, backend, gpu, sweep, created_at, seconds,
    cost_usd, billed_usd, attempts, seed, error, error_kind and note. Values are config.…,
    results.… and tags.…; each can be shown, sorted by, and compared in --where, which knows
    < <= > >= == !=, in, and, or, not: 'status == "error" and "vit" in config.model'.
    """
    from ml_experiments.runner.display.printable import printable
    from ml_experiments.settings import runs_dir

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    chosen = tuple(name.strip() for name in (columns or "").split(",") if name.strip())
    registry, run_filter = open_registry(), filter_of(filters)
    rows = registry.rows(limit or None, run_filter, sort, chosen)
    if not offline:
        if end_lost_jobs(rows):
            rows = registry.rows(limit or None, run_filter, sort, chosen)
        rows = with_remote_statuses(rows)
    if as_json:
        records = [{name: row.get(name) for name in chosen} or row.to_dict() for row in rows]
        click.echo(json.dumps(records))
    elif as_csv:
        named = chosen or _csv_columns(rows)
        print_csv([named, *([row.get(name) for name in named] for row in rows)])
    elif not rows:
        why = registry.explain_none(run_filter)
        match = "" if run_filter.is_empty else " match"
        click.echo(printable(f"no runs in {runs_dir()}{match}{f': {why}' if why else ''}"))
    else:
        (_print_columns if chosen else _print_rows)(rows, chosen)
        more = registry.count(run_filter) - len(rows)
        if more > 0:
            click.echo(f"{more} {'older ones' if sort is None else 'more'}: --limit 0")


def _csv_columns(rows: Sequence[RunRow]) -> tuple[str, ...]:
    from ml_experiments.runs.index.rows import COLUMNS

    return (*COLUMNS, *sorted({path for row in rows for path in row.values}))


def print_csv(lines: Iterable[Sequence[Any]]) -> None:
    """Print lines as CSV: as they are into a file or a pipe, without escape sequences elsewhere."""
    from ml_experiments.cli.table import is_terminal
    from ml_experiments.runner.display.printable import printable_lines

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    content = printable_lines(file.getvalue()) if is_terminal() else file.getvalue()
    click.echo(content, nl=False, color=True)


def _print_columns(rows: Sequence[RunRow], columns: Sequence[str]) -> None:
    from ml_experiments.cli.table import Column, print_table

    values = [[row.get(name) for name in columns] for row in rows]
    are_numbers = [
        all(v is None or isinstance(v, int | float) for v in column)
        for column in zip(*values, strict=True)
    ]
    print_table(
        [
            Column(name, is_right=is_number, is_cut=not is_number and name != "run_id")
            for name, is_number in zip(columns, are_numbers, strict=True)
        ],
        [[shown(value) for value in row] for row in values],
    )


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_rows(rows: Sequence[RunRow], _columns: Sequence[str]) -> None:
    from ml_experiments.cli.run_report import COLOURS
    from ml_experiments.cli.table import Cell, Column, print_table
    from ml_experiments.runner.display.printable import printable

    columns = (
        Column("run"),
        Column("status"),
        Column("seconds", is_right=True),
        Column("experiment", is_cut=True),
        Column("name", is_cut=True),
        Column("where"),
    )
    cells: list[tuple[str | Cell, ...]] = []
    for row in rows:
        if row.problem:
            cells.append((row.run_id, Cell("unreadable", "red"), "", "", "", ""))
            continue
        status = str(row.status)
        seconds = f"{row.seconds:.2f}" if row.seconds is not None else ""
        experiment = re.split(r"[.:]", row.experiment or "")[-1]
        where = row.gpu or row.backend or ""
        status_cell = Cell(status, COLOURS.get(status, "cyan"))
        cells.append((row.run_id, status_cell, seconds, experiment, row.name or "", where))
    print_table(columns, cells)
    for row in rows:
        if row.problem:  # below, for a path would take the columns' room
            click.echo(f"unreadable: {printable(row.problem)}")
