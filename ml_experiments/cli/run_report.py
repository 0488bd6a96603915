"""The report of a run: printed when it has ended, and by `runs show`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len

from ml_experiments.cli.table import Cell, Column, cut, is_terminal, print_table
from ml_experiments.runner.display.printable import printable, printable_lines
from ml_experiments.runs.result import Attempt, RunResult
from ml_experiments.serialization.plain_values import MAX_SHOWN_BITS

_MAX_ROWS = 20
_MIN_VALUE_WIDTH = 20
COLOURS = {"success": "green", "error": "red", "cancelled": "yellow"}
_FILE_TYPES = {"file", "image", "ndarray", "tensor", "dataframe", "series", "bytes"}


def print_report(result: RunResult, more: Iterable[tuple[str, str]] = ()) -> None:
    """Print status, id, time, results, artifacts, more rows, and what went wrong."""
    status = Cell(str(result.status), COLOURS.get(result.status, "cyan"))
    rows: list[tuple[str, str | Cell]] = [("status", status), ("run", result.run_id)]
    if "total_s" in result.timings:
        rows.append(("seconds", _seconds(result.timings)))
    if "peak_memory_bytes" in result.environment:
        rows.append(("peak memory", _peak_memory(result.environment)))
    if result.cost:
        rows.append(("cost", _cost(result.cost)))
    if result.is_reused:
        rows.append(("reused", "yes: nothing was started, and this cost $0"))
    taken = {name for name, _ in rows}
    results = [row for row in _result_rows(result) if row[0] not in taken]
    rows.extend(_shorten(results) if is_terminal() else results)
    if result.run_dir is not None:
        rows.append(("artifacts", _artifacts(result)))
        rows.append(("run folder", _short_path(result.run_dir)))
    rows.extend((f"attempt {a.number}", _attempt(a)) for a in result.attempts[:-1])
    rows.extend(more)
    print_table((Column(""), Column("")), rows)
    if result.error is not None:
        _print_error(result)


def _print_error(result: RunResult) -> None:
    error = result.error
    assert error is not None
    click.echo("")
    if error.traceback:
        click.echo(printable_lines(error.traceback.rstrip()))
    else:
        click.echo(printable_lines(f"{error.type}: {error.message}"))
    click.echo(f"{click.style('error kind', bold=True)}  {error.kind}")
    if error.hint:
        click.echo(f"{click.style('hint', bold=True)}        {printable_lines(error.hint)}")


def _attempt(attempt: Attempt) -> str:
    error = attempt.error
    why = f": {error.type}: {error.message}" if error is not None else ""
    seconds = "" if attempt.seconds is None else f" after {attempt.seconds:.2f} s"
    cost = "" if attempt.cost_usd is None else f" for ${attempt.cost_usd:.4f}"
    return f"{attempt.status}{seconds}{cost} on {attempt.place or 'an unknown machine'}{why}"


def _seconds(timings: dict[str, float]) -> str:
    parts = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.2f}"
        for name, seconds in timings.items()
        if name not in ("total_s", "container_s", "" if seconds else "setup_saved_s")
    )
    return f"{timings['total_s']:.2f}" + (f" ({parts})" if parts else "")


def _cost(cost: dict[str, float]) -> str:
    return ", ".join(
        f"{name.removesuffix('_usd').replace('_', ' ')} ${usd:.4f}" for name, usd in cost.items()
    )


def _peak_memory(environment: dict[str, Any]) -> str:
    shown = f"{environment['peak_memory_bytes'] / 1e6:,.0f} MB"
    if "peak_gpu_memory_bytes" in environment:
        shown += f", GPU {environment['peak_gpu_memory_bytes'] / 1e6:,.0f} MB"
    return shown


def _result_rows(result: RunResult) -> Iterator[tuple[str, str]]:
    if result.results is None:
        return
    if not isinstance(result.results, dict):
        yield "results", _value(result.results, result.run_dir)
        return
    given = {name: value for name, value in result.results.items() if value is not None}
    for count, (name, value) in enumerate(given.items()):
        if count == _MAX_ROWS:
            yield "...", f"{len(given) - _MAX_ROWS} more in result.json"
            return
        yield str(name).replace("_", " "), _value(value, result.run_dir)


def _value(value: Any, run_dir: Path | None) -> str:
    if isinstance(value, dict) and value.get("$type") in _FILE_TYPES:
        return _short_path((run_dir or Path()) / str(value.get("path", "")))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_BITS:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} entries in result.json"
    if isinstance(value, dict):
        shown = ", ".join(f"{name} {_value(inner, run_dir)}" for name, inner in value.items())
    elif isinstance(value, list):
        shown = ", ".join(_value(inner, run_dir) for inner in value)
    else:
        shown = str(value)
    return shown or "none"


def _shorten(results: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield names and values, as much of them as one line of the terminal has room for."""
    columns = shutil.get_terminal_size().columns
    names = [cut(printable(name), columns // 3) for name, _ in results]
    width = max(map(cell_len, (*names, "peak memory")))
    for name, (_, value) in zip(names, results, strict=True):
        yield name, cut(printable(value), max(columns - width - 2, _MIN_VALUE_WIDTH))


def _artifacts(result: RunResult) -> str:
    if not result.artifacts:
        return "none"
    size = sum(artifact.size_bytes for artifact in result.artifacts)
    folder = _short_path((result.run_dir or Path()) / "artifacts")
    count = len(result.artifacts)
    return f"{count} file{'s' if count != 1 else ''}, {size / 1e6:.2f} MB, in {folder}"


def _short_path(path: Path) -> str:
    shorter = os.path.relpath(path)
    fits = len(shorter) < min(len(str(path)), shutil.get_terminal_size().columns)
    return shorter if fits else str(path)
