"""`ml-experiments runs resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ml_experiments.cli.parameters import JSON, max_cost_option, yes_option
from ml_experiments.cli.runs.finding import find_run

if TYPE_CHECKING:
    from ml_experiments.backends.base import RunHandle


@click.command()
@click.argument("run")
@JSON
@click.option("--force", is_flag=True, help="Also if it seems to go on.")
@max_cost_option("attempts")
@yes_option("it")
def resume(run: str, as_json: bool, force: bool, max_cost: float | None, yes: bool) -> int:
    """Run a run again that did not succeed, from its checkpoints."""
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import approve_cost, follow, report
    from ml_experiments.runner.resume import resume_run

    folder = find_run(run)
    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:

        def start() -> RunHandle:
            return resume_run(
                folder,
                backend=backend,
                force=force,
                max_cost=max_cost,
                approve=lambda run: approve_cost(run, backend, yes=yes, may_ask=False),
            )

        result = follow(start, as_json)
    return report(result, as_json)
