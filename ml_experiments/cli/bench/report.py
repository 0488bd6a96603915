"""What a bench shows: its plan, its runs as they end, and its tables."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ml_experiments.cli.parameters import Format
from ml_experiments.cli.run_report import COLOURS
from ml_experiments.cli.table import Cell, Column, print_table
from ml_experiments.runner.bench.plot import cost_unit
from ml_experiments.runner.display.printable import printable

if TYPE_CHECKING:
    from ml_experiments.backends.forecast import Forecast
    from ml_experiments.runner.bench.bench import BenchReport
    from ml_experiments.runner.bench.cases import EndedRun
    from ml_experiments.runner.bench.folder import BenchSpec
    from ml_experiments.runner.bench.measuring import BenchRow

_SHOWN = (50, 95)  # percentiles; an 80-column terminal has no room for the third


def print_plan(
    spec: BenchSpec, forecast: Forecast | None, form: Format, *, is_all: bool = False
) -> None:
    """Print what is going to be measured, and what it may cost.

    Args:
        spec: The bench.
        forecast: What it may cost; None for nothing.
        form: How it is printed.
        is_all: Whether nothing else is going to be printed, so that JSON has it.
    """
    if is_all and form == "json":
        record = {
            "experiment": spec.experiment,
            "cases": [{"gpu": c.gpu, "overrides": list(c.overrides)} for c in spec.cases],
            "repeat": spec.repeat,
            "forecast": None if forecast is None else forecast.to_dict(),
        }
        click.echo(json.dumps(record))
    cases = len(spec.cases)
    where = ", ".join(spec.gpus) or "this machine"
    where += f" on each of {spec.nodes} machines" if spec.nodes > 1 else ""
    runs = f"{cases} case{'s' * (cases > 1)}, each with a warm-up and {spec.repeat} measured run"
    click.echo(f"{where}: {runs}{'s' * (spec.repeat > 1)}", err=form != "table")
    if forecast is not None:
        click.echo(f"all of it: {forecast}", err=form != "table")


def print_run(ended: EndedRun, form: Format) -> None:
    """Print that a run has ended."""
    result = ended.result
    parts = [f"[{ended.count}/{ended.total}]", str(result.status), ended.case.gpu or ""]
    parts += [*ended.case.overrides, f"run {ended.repeat}" if ended.repeat else "warm-up"]
    if "run_s" in result.timings:
        parts.append(f"{result.timings['run_s']:.3f} s")
    if result.error is not None:
        parts.append(f"{result.error.type}: {result.error.message.partition(chr(10))[0]:.200}")
    click.echo(printable("  ".join(filter(None, parts))), err=form != "table")


def print_report(report: BenchReport, form: Format) -> None:
    """Print the rows, the cheapest output first."""
    if form == "json":
        click.echo(json.dumps(report.to_dict(), allow_nan=False))
    elif form == "csv":
        _print_csv(report)
    else:
        _print_tables(report)
        _print_advice(report)


def _print_tables(report: BenchReport) -> None:
    rows, what = report.rows, (report.per or "run").rpartition(".")[2]
    names = [override.partition("=")[0] for override in rows[0].overrides]
    labels = (Column("GPU type"), *(Column(name, is_cut=True) for name in names))
    measured = [row for row in rows if row.runs]
    if measured:
        counted = [row for row in measured if row.outputs is not None]
        if counted:
            _print_rates(labels, counted, what if report.per else "runs")
            click.echo("")
        _print_details(labels, measured)
        if report.latency is not None:
            click.echo(printable(f"p50 and p95 are those of the metric {report.latency}"))
    others = [row for row in rows if row.problem or not row.runs]
    if others:
        if measured:
            click.echo("")
        columns = (*labels, Column("status"), Column("why"))
        print_table(columns, [_label(row) + _state(row) for row in others])


def _print_rates(labels: Sequence[Column], rows: Sequence[BenchRow], what: str) -> None:
    """Print how fast the rows are, and what an output costs."""
    is_paid = any(row.usd_per_output is not None for row in rows)
    columns = [*labels, *(Column(name, is_right=True) for name in (f"{what}/s", "s each", "±"))]
    scale, unit = cost_unit(rows)
    if is_paid:
        columns += [Column(f"$ {unit}", is_right=True), Column("")]
    cells = []
    for row in rows:
        line = [*_label(row), _short(row.outputs_per_s), _short(row.seconds_per_output)]
        line.append(_spread(row))
        if is_paid:
            usd = row.usd_per_output
            line.append("" if usd is None else short_dollars(scale * usd))
            line.append(Cell("*", "green") if row.is_efficient else "")
        cells.append(line)
    print_table(columns, cells)
    if is_paid:
        click.echo("* efficient: no other row is both cheaper and faster")


def _spread(row: BenchRow) -> str:
    """Return half of the distance between the fastest and the slowest run, as a share."""
    if row.seconds_per_output_spread is None or not row.seconds_per_output or row.runs < 2:
        return ""
    low, high = row.seconds_per_output_spread
    return f"{(high - low) / 2 / row.seconds_per_output:.0%}"


def _print_details(labels: Sequence[Column], rows: Sequence[BenchRow]) -> None:
    """Print how long runs took, and what they needed."""
    headings = (*(f"p{percent}" for percent in _SHOWN), "memory", "start", "set-up", "warm-up")
    columns = [*labels, *(Column(heading, is_right=True) for heading in headings)]
    cells = []
    for row in rows:
        line = [*_label(row), *(_short(row.latency.get(percent)) for percent in _SHOWN)]
        line.append(_size(row.peak_memory_bytes))
        line += ["" if s is None else f"{s:.2f}" for s in (row.start_s, row.setup_s)]
        line.append(_short(row.first_run_s))
        cells.append(line)
    print_table(columns, cells)


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _label(row: BenchRow) -> list[str | Cell]:
    return [row.gpu or "this machine", *(o.partition("=")[2] for o in row.overrides)]


def _state(row: BenchRow) -> list[str | Cell]:
    colour = "yellow" if row.status in ("measured", "not measured") else COLOURS["error"]
    return [Cell(row.status, colour), row.problem or ""]


def _print_advice(report: BenchReport) -> None:
    if report.stopped is not None:
        click.echo(printable(f"stopped: {report.stopped}"))
    if not report.is_counted:
        click.echo(
            f"count another result with: ml-experiments bench show {report.bench_id} --per …"
        )
    if not report.is_whole:
        click.echo(f"measure what is missing with: ml-experiments bench resume {report.bench_id}")


def _print_csv(report: BenchReport) -> None:
    names = [override.partition("=")[0] for override in report.rows[0].overrides]
    fields = (
        *("status", "problem", "runs", "outputs", "outputs_per_s", "seconds_per_output"),
        *("usd_per_output", "is_efficient", "median_s", "p50", "p95", "p99"),
        *("peak_memory_bytes", "peak_memory_of", "start_s", "setup_s", "first_run_s", "device"),
    )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["gpu", *names, *fields])
    for row in report.rows:
        record = row.to_dict()
        record |= record["latency"]
        values = [override.partition("=")[2] for override in row.overrides]
        writer.writerow([row.gpu, *values, *(record.get(field) for field in fields)])


def _short(number: float | None) -> str:
    """Return a number with three digits that count."""
    if number is None:
        return ""
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.{_decimals(number, 3)}f}"


def short_dollars(usd: float) -> str:
    """Return an amount with two digits after the point, or three that count."""
    return f"{usd:,.{max(2, _decimals(usd, 3))}f}"


def _decimals(number: float, digits: int) -> int:
    if number <= 0:
        return 0
    return max(0, digits - 1 - math.floor(math.log10(number)))
