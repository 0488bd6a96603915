"""`ml-experiments runs compare|diff`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.runs.finding import find_run
from ml_experiments.cli.runs.listing import print_csv, shown

if TYPE_CHECKING:
    from ml_experiments.runs.reports.compare import Comparison
    from ml_experiments.runs.reports.diff import RunDiff

_MAX_PATCH_LINES = 40
_PATCH_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command()
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--all", "shows_all", is_flag=True, help="Also values of the config that are equal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def compare(run_ids: tuple[str, ...], shows_all: bool, as_json: bool, as_csv: bool) -> None:
    """Put runs beside each other: where their configs differ, and their results."""
    from ml_experiments.runs.reports.compare import compare_runs

    if len(run_ids) < 2:
        raise click.UsageError("name at least two runs")
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    comparison = compare_runs([find_run(run) for run in run_ids], shows_all=shows_all)
    if as_json:
        click.echo(json.dumps(comparison.to_dict()))
    elif as_csv:
        rows = [(name, *values) for name, values in comparison.rows]
        print_csv([("", *comparison.runs), *rows])
    else:
        _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    from ml_experiments.cli.table import Column, is_terminal, print_table

    headings: Sequence[str] = comparison.runs
    rows = [(name, *(shown(v) for v in values)) for name, values in comparison.rows]
    names_width = max(len(name) for name, *_ in rows)
    room = shutil.get_terminal_size().columns - names_width - 2 * len(headings)
    if is_terminal() and sum(map(len, headings)) > room:  # ids that are cut look alike
        headings = [str(number) for number in range(1, len(headings) + 1)]
        for heading, run in zip(headings, comparison.runs, strict=True):
            click.echo(f"{heading}  {run}")
        click.echo("")
    columns = [Column(name, is_cut=True) for name in ("", *headings)]
    print_table(columns, rows)
    if comparison.same:
        are = "value of the config is" if comparison.same == 1 else "values of the config are"
        click.echo(f"{comparison.same} {are} the same: --all")


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--tolerance", type=click.FloatRange(min=0), help="For numbers.  [default: 1e-9]")
@click.option("--patch", "shows_patch", is_flag=True, help="Print the whole patch of the code.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(
    first: str, second: str, tolerance: float | None, shows_patch: bool, as_json: bool
) -> None:
    """Say what differs between two runs, and what of it can explain their results."""
    from ml_experiments.runs.reports.diff import DEFAULT_TOLERANCE, diff_runs

    found = diff_runs(
        find_run(first), find_run(second), DEFAULT_TOLERANCE if tolerance is None else tolerance
    )
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "explanation": found.explanation}))
    else:
        print_diff(found, shows_patch=shows_patch)


def print_diff(found: RunDiff, *, shows_patch: bool) -> None:
    """Print what differs between two runs."""
    from ml_experiments.cli.table import Cell, Column, print_table

    colours = {"yes": "yellow", "perhaps": "cyan", "no": "white"}
    first, second = (Column(run, is_cut=True) for run in found.runs)
    if found.inputs:
        columns = (Column("what it depends on", is_cut=True), first, second, Column("explains"))
        rows: list[tuple[Any, ...]] = [
            (d.what, d.first, d.second, Cell(d.explains, colours[d.explains])) for d in found.inputs
        ]
        print_table(columns, rows)
        click.echo("")
    if found.outcomes:
        outcome = Column("outcome", is_cut=True)
        print_table((outcome, first, second), [(d.path, d.first, d.second) for d in found.outcomes])
        click.echo("")
    if found.patch:
        _print_patch(found.patch.splitlines(), is_whole=shows_patch)
    if found.code_problem:
        click.echo(f"code: {_printable(found.code_problem)}")
    click.echo(_printable(found.explanation))


def _print_patch(lines: list[str], *, is_whole: bool) -> None:
    for line in lines if is_whole else lines[:_MAX_PATCH_LINES]:
        click.secho(_printable(line), fg=_PATCH_COLOURS.get(line[:1]))
    if not is_whole and len(lines) > _MAX_PATCH_LINES:
        click.echo(f"… {len(lines) - _MAX_PATCH_LINES} more lines: --patch")
    click.echo("")


def _printable(string: str) -> str:
    from ml_experiments.runner.display.printable import printable_lines

    return printable_lines(string)
