"""What a sweep shows while it runs, and the ranked table at its end."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.backends.forecast import Forecast, dollars
from ml_experiments.cli.parameters import Format
from ml_experiments.cli.run_report import COLOURS
from ml_experiments.cli.table import Cell, Column, cut, is_terminal, print_table
from ml_experiments.errors import Error, suggest
from ml_experiments.runner.display.printable import printable
from ml_experiments.runner.sweeps.controller import Progress
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
from ml_experiments.runner.sweeps.points import SweepPoint, logged_values, rank
from ml_experiments.runner.sweeps.study import MIN_FOR_IMPORTANCES, importances
from ml_experiments.runs.result import RunStatus
from ml_experiments.settings import has_dumb_terminal

if TYPE_CHECKING:
    from rich.table import Table


Show = Callable[[SweepPoint], None]

_MAX_ROWS = 20
_MAX_RUNNING = 8
_MAX_ERROR = 200
_MAX_UNASKED = 2000  # points; more take Optuna seconds
_REFRESH_PER_S = 4
_MIN_SAVED_S = 1.0


@contextlib.contextmanager
def live_view(spec: SweepSpec, progress: Progress, form: Format) -> Iterator[Show]:
    """Show a sweep: a table that is redrawn on a terminal, a line for each point elsewhere."""
    if form != "table" or not is_terminal() or has_dumb_terminal():
        yield lambda point: _print_line(spec, progress, point, to_stderr=form != "table")
        return
    from rich.console import Console  # slow to import
    from rich.live import Live

    live = Live(
        get_renderable=lambda: _live_table(spec, progress),
        console=Console(),
        refresh_per_second=_REFRESH_PER_S,
        transient=True,
    )
    with live:
        yield lambda _point: None


def _print_line(spec: SweepSpec, progress: Progress, point: SweepPoint, *, to_stderr: bool) -> None:
    parts = [f"[{len(progress.points)}/{progress.total - progress.repeated}]", point.result.status]
    parts.append(_overrides(spec, point.overrides))
    if spec.metric is not None:
        parts.append(point.problem or f"{spec.metric}={_score(point)}")
    if point.result.is_reused:
        parts.append("reused")
    elif "total_s" in point.result.timings:
        parts.append(f"{point.result.timings['total_s']:.2f} s")
    if point.result.error is not None:
        parts.append(_error(point))
    click.echo(printable("  ".join(part for part in parts if part)), err=to_stderr)


def _live_table(spec: SweepSpec, progress: Progress) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=len("running"))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row(Text(printable(spec.name or "sweep"), style="bold"), _state(spec, progress))
    best = rank(progress.points, spec.direction)[:1] if spec.metric else []
    if best and best[0].score is not None:
        shown = f"{_score(best[0])}  {_overrides(spec, best[0].overrides)}"
        table.add_row("best", Text(printable(shown)))  # no markup, such as a list [a,b]
    running = list(progress.running.values())[: spec.parallel]
    for overrides in running[:_MAX_RUNNING]:
        table.add_row("running", Text(printable(_overrides(spec, overrides))))
    if len(running) > _MAX_RUNNING:
        table.add_row("", f"and {len(running) - _MAX_RUNNING} more")
    return table


def _state(spec: SweepSpec, progress: Progress) -> str:
    """Return how far a sweep is, in one line."""
    parts = [f"{len(progress.points):,} of {progress.total - progress.repeated:,} done"]
    if progress.repeated:
        parts.append(f"{progress.repeated} suggested again")
    if progress.running:
        running = min(len(progress.running), spec.parallel)  # others may wait on Modal
        parts.append(f"{running} running")
    reused = sum(point.result.is_reused for point in progress.points)
    pruned = sum(point.is_pruned for point in progress.points)
    cancelled = progress.count(RunStatus.CANCELLED) - pruned
    for count, word in (
        (reused, "reused"),
        (progress.count(RunStatus.ERROR), "failed"),
        (pruned, "ended early"),
        (cancelled, "cancelled"),
    ):
        if count:
            parts.append(f"{count} {word}")
    if progress.setups is not None:
        parts.append(f"{progress.setups} set-up{'' if progress.setups == 1 else 's'}")
        if progress.setup_saved_s >= _MIN_SAVED_S:
            usd = progress.setup_saved_usd
            worth = f" ({dollars(usd)})" if usd else ""
            parts.append(f"{_duration(progress.setup_saved_s)} of set-up saved{worth}")
    if progress.cost_usd:
        parts.append(dollars(progress.cost_usd))
    if progress.running and progress.left_s is not None:
        parts.append(f"{_duration(progress.left_s)} left")
    return ", ".join(parts)


def print_checked(spec: SweepSpec, count: int, forecast: Forecast | None, form: Format) -> None:
    """Print what a dry run has found: how many points would run, and what they would cost."""
    if form == "json":
        record = {"total": spec.total, "checked": count, "axes": spec.axes}
        whole = None if forecast is None else forecast.to_dict()
        click.echo(json.dumps({**record, "forecast": whole}))
        return
    if forecast is not None:
        click.echo(str(forecast), err=form != "table")
    click.echo(f"{count:,} checked; nothing was started", err=form != "table")


def print_report(
    folder: SweepFolder,
    spec: SweepSpec,
    progress: Progress,
    form: Format,
    *,
    wants_importances: bool = False,
    goes_on: bool = False,
) -> None:
    """Print the points, the best first, and how much each axis matters where that can be said.

    Args:
        folder: The sweep.
        spec: What was asked for.
        progress: How far it is.
        form: How it is printed.
        wants_importances: Whether to say why nothing can be said.
        goes_on: Whether something runs the sweep.
    """
    ranked = rank(progress.points, spec.direction)
    found, problem = _importances(spec, progress.points, is_asked=wants_importances)
    if form == "json":
        record = _record(folder, spec, progress, ranked)
        record["importances"] = found
        if wants_importances:
            record["importances_problem"] = problem
        click.echo(json.dumps(record, allow_nan=False))
    elif form == "csv":
        _print_csv(spec, ranked)
    else:
        _print_table(spec, ranked)
        click.echo(_state(spec, progress))
        if found is not None:
            _print_importances(spec, found)
        elif wants_importances:
            click.echo(printable(f"no importances: {problem}"))
        _print_advice(spec, progress, goes_on=goes_on)


def _importances(
    spec: SweepSpec, points: list[SweepPoint], *, is_asked: bool
) -> tuple[dict[str, float] | None, str | None]:
    """Return how much each axis matters, or why that can't be said."""
    scores = [(point.overrides, point.score) for point in points if point.score is not None]
    if not is_asked and not MIN_FOR_IMPORTANCES <= len(scores) <= _MAX_UNASKED:
        return None, None  # Optuna takes a moment to import
    try:
        return importances(spec, scores), None
    except Error as e:
        return None, str(e)


def _print_importances(spec: SweepSpec, found: dict[str, float]) -> None:
    best = f"the best points by {spec.metric}"
    click.echo(printable(f"what tells {best} from the others (PED-ANOVA):"))
    columns = (Column(""), Column("", is_cut=True), Column("", is_right=True))
    print_table(columns, [("", name, f"{share:.0%}") for name, share in found.items()])


def exit_code(spec: SweepSpec, progress: Progress) -> int:
    """Return 0 if every point has succeeded, and has a score where one was asked for."""
    has_score = spec.metric is None or any(p.score is not None for p in progress.points)
    return 0 if progress.is_whole and has_score else 1


def _print_table(spec: SweepSpec, ranked: list[SweepPoint]) -> None:
    if not ranked:
        return
    names = _varied(spec)
    columns = [Column("", is_right=True), *(Column(name, is_cut=True) for name in names)]
    if spec.metric is not None:
        columns.append(Column(spec.metric, is_right=True))
    columns += [Column("status"), Column("seconds", is_right=True), Column("run")]
    rows = []
    for place, point in enumerate(ranked[:_MAX_ROWS], 1):
        written = dict(override.partition("=")[::2] for override in point.overrides)
        row: list[str | Cell] = [str(place), *(written.get(name, "") for name in names)]
        if spec.metric is not None:
            row.append(_score(point))
        status = str(point.result.status)
        seconds = point.result.timings.get("total_s")
        row += [Cell(status, COLOURS.get(status, "cyan")), f"{seconds:.2f}" if seconds else ""]
        rows.append([*row, point.result.run_id])
    print_table(columns, rows)
    if len(ranked) > _MAX_ROWS:
        click.echo(f"{len(ranked) - _MAX_ROWS:,} more: --json or --csv prints all")


def _print_advice(spec: SweepSpec, progress: Progress, *, goes_on: bool) -> None:
    """Print what went wrong, and what can be done."""
    if progress.stopped is not None:
        click.echo(printable(f"stopped: {progress.stopped}"))
    failed = [point for point in progress.points if point.result.status is RunStatus.ERROR]
    errors: dict[str, int] = {}
    for point in failed:
        errors[_error(point)] = errors.get(_error(point), 0) + 1
    for error, count in list(errors.items())[:3]:
        click.echo(printable(f"{count} failed: {error}"))
    problems = {point.problem for point in progress.points if point.problem}
    for problem in sorted(problems)[:3]:
        click.echo(printable(f"no score: {problem}"))
    uncompared = _uncompared(spec, progress.points) if progress.points else None
    if uncompared is not None:
        click.echo(printable(f"the pruner has compared nothing: {uncompared}"))
    if goes_on:
        click.echo("it goes on")
    elif not progress.is_whole:
        click.echo(f"run what is missing with: ml-experiments sweep resume {spec.sweep_id}")


def _uncompared(spec: SweepSpec, points: list[SweepPoint]) -> str | None:
    """Return why a pruner can't have compared points; None if it can."""
    metric = spec.pruner_metric
    logged: set[str] = set()
    if metric is None:
        return None
    for point in points:
        if logged_values(point.result, metric):
            return None
        for entry in point.result.metrics:
            logged |= set(entry.get("metrics", ()))
    known = f"; logged: {', '.join(sorted(logged))}" if logged else ""
    return f"no point has logged {metric!r} at a step{suggest(metric, logged - {metric})}{known}"


def _record(
    folder: SweepFolder, spec: SweepSpec, progress: Progress, ranked: list[SweepPoint]
) -> dict[str, Any]:
    return {
        "sweep_id": spec.sweep_id,
        "name": spec.name,
        "experiment": spec.experiment,
        "folder": str(folder.path),
        "sampler": spec.sampler,
        "seed": spec.seed,
        "metric": spec.metric,
        "direction": spec.direction,
        "total": progress.total,
        "forecast": None if progress.forecast is None else progress.forecast.to_dict(),
        "repeated": progress.repeated,
        "setups": progress.setups,
        "setup_saved_s": progress.setup_saved_s,
        "setup_saved_usd": progress.setup_saved_usd,
        "stopped": progress.stopped,
        "points": [_point_record(point) for point in ranked],
    }


def _point_record(point: SweepPoint) -> dict[str, Any]:
    error = point.result.error
    return {
        "number": point.number,
        "overrides": list(point.overrides),
        "status": str(point.result.status),
        "score": point.score,
        "problem": point.problem,
        "run_id": point.result.run_id or None,
        "is_reused": point.result.is_reused,
        "seconds": point.result.timings.get("total_s"),
        "cost_usd": point.cost_usd,
        "results": point.result.results_json,
        "error": f"{error.type}: {error.message}" if error else None,
    }


def _print_csv(spec: SweepSpec, ranked: list[SweepPoint]) -> None:
    names = [axis.name for axis in spec.space.axes]
    fields = ("status", "score", "seconds", "cost_usd", "run_id", "error")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["number", *names, *fields])
    for point in ranked:
        written = dict(override.partition("=")[::2] for override in point.overrides)
        record = _point_record(point)
        cells = [written.get(name, "") for name in names]
        writer.writerow([point.number, *cells, *(record[field] for field in fields)])


def _varied(spec: SweepSpec) -> list[str]:
    """Return the axes with more than one value."""
    axes = spec.space.axes
    return [axis.name for axis in axes if axis.grid is None or len(axis.grid) > 1]


def _overrides(spec: SweepSpec, overrides: tuple[str, ...]) -> str:
    varied = _varied(spec)
    shown = [override for override in overrides if override.partition("=")[0] in varied]
    return " ".join(shown or overrides)


def _score(point: SweepPoint) -> str:
    return "" if point.score is None else f"{point.score:.6g}"


def _error(point: SweepPoint) -> str:
    error = point.result.error
    if error is None:
        return ""
    line = f"{error.type}: {error.message.partition(chr(10))[0]}"
    return cut(line, _MAX_ERROR) if is_terminal() else line


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
