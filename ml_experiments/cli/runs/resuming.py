"""`ml-experiments runs resume|attach`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from ml_experiments.cli.runs.finding import find_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ml_experiments.backends.base import RunHandle


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--force", is_flag=True, help="Also if it seems to go on.")
def resume(run: str, as_json: bool, force: bool) -> int:
    """Run a run again that did not succeed, from its checkpoints."""
    from ml_experiments.runner.resume import resume_run

    return _follow(run, functools.partial(resume_run, force=force), as_json)


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def attach(run: str, as_json: bool) -> int:
    """Follow a run on Modal that outlived its client, and bring its result here."""
    from ml_experiments.runner.resume import attach_run

    return _follow(run, attach_run, as_json)


def _follow(run: str, take_up: Callable[..., RunHandle], as_json: bool) -> int:
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import follow, report

    folder = find_run(run)
    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:
        result = follow(lambda: take_up(folder, backend=backend), as_json)
    return report(result, as_json)
