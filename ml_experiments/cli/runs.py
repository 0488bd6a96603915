"""`ml-experiments runs list|show|resume`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from ml_experiments.backends.base import RunHandle
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.runs.registry import RunRow

_LOG_CHUNK = 1 << 20


@click.group()
def runs() -> None:
    """List, show and resume runs."""


@runs.command("list")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="The newest so many; 0 for all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(limit: int, as_json: bool) -> None:
    """List runs, the newest first."""
    from ml_experiments.runs.registry import RunRegistry
    from ml_experiments.settings import runs_dir

    registry = RunRegistry(runs_dir())
    shown = registry.rows(limit or None)
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in shown]))
    elif not shown:
        click.echo(f"no runs in {runs_dir()}")
    else:
        _print_table(shown)
        older = registry.count() - len(shown)
        if older > 0:
            click.echo(f"{older} older ones: --limit 0")


@runs.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--log", "with_log", is_flag=True, help="Print what the experiment printed.")
def show(run: str, as_json: bool, with_log: bool) -> None:
    """Show one run. RUN is an id, the beginning of one, or `last`."""
    from ml_experiments.cli.run_report import print_report
    from ml_experiments.runner.printable import printable

    folder = _find(run)
    outcome = folder.outcome()
    if as_json:
        everything = {
            **outcome.to_dict(),
            "spec": folder.read_spec().to_dict(),
            "manifest": folder.read_manifest().to_dict(),
            "metrics": list(folder.read_metrics()),
        }
        click.echo(json.dumps(everything, allow_nan=False))
        return
    spec = folder.read_spec()
    config = json.dumps(spec.config, ensure_ascii=False)
    click.echo(printable(f"{spec.experiment}  {config}  seed {spec.seed}"))
    place = folder.read_manifest().modal
    more = []
    if place and place.app_url and outcome.status in ("pending", "running"):
        more = [
            ("on Modal", place.app_url),
            ("follow it", f"ml-experiments runs attach {spec.run_id}"),
        ]
    print_report(outcome, more)
    if with_log:
        click.echo("")
        _print_log(folder.log_file)


@runs.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--force", is_flag=True, help="Also if it seems to go on.")
def resume(run: str, as_json: bool, force: bool) -> int:
    """Run a run again that did not succeed, from its checkpoints."""
    from ml_experiments.runner.resume import resume_run

    return _follow(run, functools.partial(resume_run, force=force), as_json)


@runs.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def attach(run: str, as_json: bool) -> int:
    """Follow a run on Modal that outlived its client, and bring its result here."""
    from ml_experiments.runner.resume import attach_run

    return _follow(run, attach_run, as_json)


def _follow(run: str, take_up: Callable[..., RunHandle], as_json: bool) -> int:
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import follow, report

    folder = _find(run)
    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:
        result = follow(lambda: take_up(folder, backend=backend), as_json)
    return report(result, as_json)


def _find(run: str) -> RunFolder:
    from ml_experiments.runs.registry import RunRegistry
    from ml_experiments.settings import runs_dir

    return RunRegistry(runs_dir()).find(run)


def _print_log(file: Path) -> None:
    from ml_experiments.errors import RunFolderError
    from ml_experiments.runner.printable import printable_lines

    try:
        # newline="": a progress bar's \r is no end of a line that it would be translated to
        with file.open(encoding="utf-8", errors="backslashreplace", newline="") as log:
            while chunk := log.read(_LOG_CHUNK):
                click.echo(printable_lines(chunk), nl=False)
    except OSError as e:
        raise RunFolderError(f"{file} is not readable: {e.strerror}") from e


def _print_table(rows: list[RunRow]) -> None:
    from ml_experiments.cli.run_report import COLOURS
    from ml_experiments.cli.table import Cell, Column, print_table
    from ml_experiments.runner.printable import printable

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
