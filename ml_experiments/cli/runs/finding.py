"""How commands name runs: one by its id, or many by filters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ml_experiments.cli.parameters import Tag

if TYPE_CHECKING:
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.runs.index.filters import RunFilter
    from ml_experiments.runs.registry import RunRegistry

_Run = TypeVar("_Run")
_MIN_SHOWN = 2000  # fewer folders are read before one could read about it


def find_run(reference: str) -> RunFolder:
    """Return the run folder of an id, the beginning of one, a name, or `last`.

    Raises:
        RunNotFoundError: If none or several match.
    """
    return open_registry().find(reference)


def for_each(runs: Iterable[_Run], act: Callable[[_Run], int]) -> int:
    """Do something with each of some runs, also when it fails for one.

    Args:
        runs: The runs.
        act: Does it; it returns an exit code, or raises an `Error`, which is told.

    Returns:
        The first exit code that is not 0.
    """
    from ml_experiments.cli.main import tell
    from ml_experiments.errors import Error

    code = 0
    for run in runs:
        try:
            done = act(run)
        except Error as e:
            done = tell(e)
        code = code or done
    return code


def open_registry() -> RunRegistry:
    """Return the registry of the runs folder; the first reading of many shows its progress."""
    from ml_experiments.runs.registry import RunRegistry
    from ml_experiments.settings import runs_dir

    return RunRegistry(runs_dir(), _show_progress)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that filter runs to a command; `filter_of` reads them."""
    for option in reversed(
        (
            click.option("--status", multiple=True, help="success, error, running, … Repeatable."),
            click.option("--experiment", help="Its path, or the end of it; * is a wildcard."),
            click.option("--name", help="Its name; * is a wildcard."),
            click.option("--tag", "tags", type=Tag(), multiple=True, help="Repeatable."),
            click.option("--gpu", help="The GPU asked for, such as 'h100*'."),
            click.option("--backend", help="local or modal."),
            click.option("--sweep", help="Its sweep, as for `sweep show`; * is a wildcard."),
            click.option("--since", help="A date, 2026-11-25, or an age, 12h or 7d."),
            click.option("--until", help="The same."),
            click.option("--where", help="Such as 'config.lr < 1e-3 and results.accuracy > 0.9'."),
        )
    ):
        command = option(command)
    return command


def filter_of(options: dict[str, Any]) -> RunFilter:
    """Return the filter that the options of a command stand for.

    Raises:
        RunNotFoundError: If no sweep, or more than one, is the one that is meant.
    """
    from ml_experiments.runs.index.filters import RunFilter

    sweep = options["sweep"] and _sweep_id(options["sweep"])
    return RunFilter(**{**options, "tags": dict(options["tags"]), "sweep": sweep})


def _sweep_id(reference: str) -> str:
    """Return the tag `sweep` that a sweep's name, the beginning of its id, or `last` stands for."""
    from ml_experiments.errors import RunNotFoundError
    from ml_experiments.runner.sweeps.folder import find_sweep
    from ml_experiments.runs.index.filters import RunFilter
    from ml_experiments.settings import runs_dir

    try:
        return find_sweep(runs_dir(), reference).path.name
    except RunNotFoundError:
        # a pattern, a tag of the user's own, or runs of a sweep whose folder is elsewhere
        if "*" in reference or open_registry().rows(1, RunFilter(sweep=reference)):
            return reference
        raise


def _show_progress(done: int, total: int) -> None:
    if total >= _MIN_SHOWN and sys.stderr.isatty():
        end = "\n" if done == total else ""
        click.echo(f"\rreading run folders: {done:,} of {total:,}{end}", err=True, nl=False)
