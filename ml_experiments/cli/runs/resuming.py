"""`ml-experiments runs resume`."""

from __future__ import annotations

import click

from ml_experiments.cli.runs.finding import find_run


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--force", is_flag=True, help="Also if it seems to go on.")
def resume(run: str, as_json: bool, force: bool) -> int:
    """Run a run again that did not succeed, from its checkpoints."""
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import follow, report
    from ml_experiments.runner.resume import resume_run

    folder = find_run(run)
    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:
        result = follow(lambda: resume_run(folder, backend=backend, force=force), as_json)
    return report(result, as_json)
