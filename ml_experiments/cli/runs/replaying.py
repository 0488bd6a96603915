"""`ml-experiments runs replay`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ml_experiments.cli.parameters import JSON, yes_option
from ml_experiments.cli.runs.comparing import print_diff
from ml_experiments.cli.runs.finding import find_run

if TYPE_CHECKING:
    from ml_experiments.backends.base import RunHandle


@click.command()
@click.argument("run")
@click.option("--verify", is_flag=True, help="Exit with 1 unless it comes to the same results.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="How much numbers may differ.",
)
@click.option("--current-code", is_flag=True, help="Import the code as it is now, not from git.")
@JSON
@yes_option("it")
def replay(
    run: str, verify: bool, tolerance: float, current_code: bool, as_json: bool, yes: bool
) -> int:
    """Run an old run again, with its code from git, and compare the results.

    The new run has the same config, seed and options. Where the old one recorded a git commit, its
    code and the changes that were not committed are imported from a folder of their own, below
    .code in the runs folder.
    """
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import EXIT_CODES, approve_cost, follow
    from ml_experiments.cli.run_report import print_report
    from ml_experiments.runner.replay import replay_run
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.runs.reports.diff import diff_runs

    folder = find_run(run)
    spec = folder.read_spec()
    outcome = folder.outcome()
    if outcome.status in ("pending", "running"):
        raise click.UsageError(f"run {outcome.run_id} is {outcome.status}; wait for its end")
    with open_backend(spec.backend, **spec.backend_options) as backend:

        def start() -> RunHandle:
            return replay_run(
                folder,
                backend=backend,
                uses_current_code=current_code,
                approve=lambda run: approve_cost(run, backend, yes=yes, may_ask=False),
            )

        result = follow(start, as_json)
    assert result.run_dir is not None  # a run that was started here has one
    found = diff_runs(folder, RunFolder(result.run_dir), tolerance)
    if as_json:
        compared = {**found.to_dict(), "explanation": found.explanation}
        click.echo(json.dumps({**result.to_dict(), "compared": compared}, allow_nan=False))
    else:
        print_report(result)
        if result.status != "cancelled":  # it came to nothing that could be compared
            click.echo("")
            print_diff(found, shows_patch=False)
    if result.status == "cancelled" or not verify:
        return EXIT_CODES[result.status]
    return 1 if found.outcomes else 0
