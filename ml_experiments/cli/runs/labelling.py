"""`ml-experiments runs tag|name|note`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.parameters import Tag
from ml_experiments.cli.runs.finding import find_run

if TYPE_CHECKING:
    from ml_experiments.runs.labels import Labels


@click.command()
@click.argument("run")
@click.argument("tags", nargs=-1, type=Tag(), metavar="[KEY=VALUE]...")
@click.option("--remove", multiple=True, metavar="KEY", help="Remove a tag. Repeatable.")
def tag(run: str, tags: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> None:
    """Set and remove tags of a run, and print them all."""
    from ml_experiments.errors import suggest
    from ml_experiments.runs.labels import read_labels

    folder = find_run(run)
    known = read_labels(folder).tags
    for key in remove:
        if key not in known:
            raise click.UsageError(
                f"run {folder.path.name} has no tag {key!r}{suggest(key, known)}"
            )

    def change(labels: Labels) -> Labels:
        kept = {key: value for key, value in labels.tags.items() if key not in remove}
        return dataclasses.replace(labels, tags={**kept, **dict(tags)})

    labels = _edit(run, change) if tags or remove else read_labels(folder)
    for key, value in labels.tags.items():
        _print(f"{key}={value}")


@click.command()
@click.argument("run")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Remove the name.")
def name(run: str, name: str | None, remove: bool) -> None:
    """Give a run another name, or print it."""
    _set("name", run, name, remove)


@click.command()
@click.argument("run")
@click.argument("note", required=False)
@click.option("--remove", is_flag=True, help="Remove the note.")
def note(run: str, note: str | None, remove: bool) -> None:
    """Write a note on a run, or print it."""
    _set("note", run, note, remove)


def _set(label: str, run: str, value: str | None, remove: bool) -> None:
    from ml_experiments.runs.labels import read_labels

    if value is not None and remove:
        raise click.UsageError("--remove takes no value")
    if value is not None and not value.strip():
        raise click.UsageError(f"the {label} is empty; --remove removes it")
    if value is None and not remove:
        labels = read_labels(find_run(run))
    else:
        changed: dict[str, Any] = {label: value}
        labels = _edit(run, lambda labels: dataclasses.replace(labels, **changed))
    kept = getattr(labels, label)
    if kept is not None:
        _print(kept)
    else:
        click.echo(f"the run has no {label}" + (" any more" if remove else ""), err=True)


def _edit(run: str, change: Callable[[Labels], Labels]) -> Labels:
    from ml_experiments.runs.labels import edit_labels

    return edit_labels(find_run(run), change)


def _print(string: str) -> None:
    from ml_experiments.runner.display.printable import printable_lines

    click.echo(printable_lines(string))
