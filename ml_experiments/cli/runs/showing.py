"""`ml-experiments runs show`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ml_experiments.cli.runs.finding import find_run

_LOG_CHUNK = 1 << 20


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--log", "with_log", is_flag=True, help="Print what the experiment printed.")
def show(run: str, as_json: bool, with_log: bool) -> None:
    """Show one run. RUN is an id, the beginning of one, a name, or `last`."""
    from ml_experiments.cli.run_report import print_report
    from ml_experiments.runner.display.printable import printable
    from ml_experiments.runs.labels import read_labels

    folder = find_run(run)
    outcome, labels = folder.outcome(), read_labels(folder)
    if as_json:
        everything = {
            **outcome.to_dict(),
            "spec": folder.read_spec().to_dict(),
            "manifest": folder.read_manifest().to_dict(),
            "labels": {"name": labels.name, "tags": labels.tags, "note": labels.note},
            "metrics": list(folder.read_metrics()),
        }
        click.echo(json.dumps(everything, allow_nan=False))
        return
    spec = folder.read_spec()
    config = json.dumps(spec.config, ensure_ascii=False)
    click.echo(printable(f"{spec.experiment}  {config}  seed {spec.seed}"))
    place = folder.read_manifest().modal
    tags = ", ".join(f"{tag}={value}" for tag, value in labels.tags.items())
    given = (("name", labels.name), ("tags", tags), ("note", labels.note))
    more = [(what, value) for what, value in given if value]
    if spec.nodes > 1:
        more.append(("nodes", f"{spec.nodes}, each with {spec.nproc_per_node} processes"))
    if place and place.app_url and outcome.status in ("pending", "running"):
        more += [
            ("on Modal", place.app_url),
            ("follow it", f"ml-experiments runs follow {spec.run_id}"),
        ]
    print_report(outcome, more)
    if with_log:
        click.echo("")
        print_log(folder.log_file)


def print_log(file: Path, offset: int = 0) -> None:
    """Print a log, from an offset in bytes: of a progress bar the last state.

    Raises:
        RunFolderError: If it is not readable.
    """
    from ml_experiments.errors import RunFolderError
    from ml_experiments.runner.display.printable import printable_lines
    from ml_experiments.runner.display.terminal_rows import TerminalRows

    rows = TerminalRows(colours=False)
    try:
        # newline="": a progress bar's \r is no end of a line that it would be translated to
        with file.open(encoding="utf-8", errors="backslashreplace", newline="") as log:
            log.seek(offset)
            while chunk := log.read(_LOG_CHUNK):
                for line in rows.feed(chunk):
                    click.echo(printable_lines(line))
            for line in rows.end():
                click.echo(printable_lines(line))
    except OSError as e:
        raise RunFolderError(f"{file} is not readable: {e.strerror}") from e
