"""`ml-experiments run`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.parameters import Duration, Tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from ml_experiments.backends.base import RunHandle
    from ml_experiments.execution.observer import Observer
    from ml_experiments.runs.result import RunResult

EXIT_CODES = {"success": 0, "error": 1, "cancelled": 130}


@click.command()
@click.argument("class_path")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML or JSON file.")
@click.option("--backend", default=None, help="local or modal; modal when --gpu is given.")
@click.option("--gpu", help="GPU type on Modal: a10g, h100:2, or h100,a100-80gb as a fallback.")
@click.option("--timeout", "timeout_s", type=Duration(), help="End the run after 90s, 30m, 2h, ...")
@click.option("--seed", type=int, help="Seed of random, numpy and torch; drawn when not given.")
@click.option("--name", help="What the run is called in lists.")
@click.option("--tag", "tags", type=Tag(), multiple=True, help="Recorded with the run; repeatable.")
@click.option("--secret", "secret_names", multiple=True, help="Modal secret to attach; repeatable.")
@click.option("--pip", "pip", multiple=True, help="Package to add to the Modal image; repeatable.")
@click.option(
    "--requirements",
    type=click.Path(path_type=Path),
    help="File with packages to add to the Modal image.",
)
@click.option("--cpu", type=float, help="CPU cores on Modal.")
@click.option("--memory", "memory_gib", type=float, help="Memory on Modal, in GiB.")
@click.option("--cuda-toolkit", is_flag=True, help="Modal image with nvcc, to compile kernels.")
@click.option("--prefetch", is_flag=True, help="Download the models that the config names first.")
@click.option("--dry-run", is_flag=True, help="Print the run spec that would be submitted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--debug", is_flag=True, help="Run in this process, for a debugger.")
def run(
    class_path: str,
    overrides: tuple[str, ...],
    config_file: Path | None,
    backend: str | None,
    gpu: str | None,
    timeout_s: float | None,
    seed: int | None,
    name: str | None,
    tags: tuple[tuple[str, str], ...],
    secret_names: tuple[str, ...],
    pip: tuple[str, ...],
    requirements: Path | None,
    cpu: float | None,
    memory_gib: float | None,
    cuda_toolkit: bool,
    prefetch: bool,
    dry_run: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Run an experiment: a class with run(), or a function.

    CLASS_PATH is pkg.module.Class, pkg.module:Class or path/to/file.py:Class. KEY=VALUE sets a
    config field, as in prompt="a red seven" optimizer.lr=3e-4 sizes=[1,2]; later ones win.

    Exit codes: 0 success, 1 the run ended in an error, 2 bad usage or config (nothing was
    started), 130 interrupted.
    """
    from ml_experiments.backends import open_backend
    from ml_experiments.config.loading import load_config
    from ml_experiments.redaction.redactor import Redactor
    from ml_experiments.runner.prepare import prefetch_models, prepare_run
    from ml_experiments.runner.run import submit_run

    config = load_config(config_file, overrides)
    backend_name = backend or ("local" if gpu is None else "modal")
    if debug:
        if backend_name != "local":
            raise click.UsageError("--debug runs in this process; it can't go with another backend")
        backend_name = "debug"
    options = {
        "secrets": secret_names,
        "pip": pip,
        "requirements": requirements,
        "cpu": cpu,
        "memory_gib": memory_gib,
        "cuda_toolkit": cuda_toolkit,
    }
    if backend_name != "modal":
        options = _refuse_modal_options(options)
    with open_backend(backend_name, **options) as opened:
        prepared = prepare_run(
            class_path,
            config,
            backend=opened,
            timeout_s=timeout_s,
            seed=seed,
            gpu=gpu,
            name=name,
            tags=dict(tags),
        )
        if dry_run:
            record = Redactor(prepared.secrets).redact_json(prepared.spec.to_dict())
            click.echo(json.dumps(record, indent=None if as_json else 2))
            return 0

        def start(observer: Observer) -> RunHandle:
            if prefetch:
                prefetch_models(prepared, backend=opened, observer=observer)
            return submit_run(prepared, backend=opened, observer=observer)

        result = follow(start, as_json)
    return report(result, as_json)


def follow(start: Callable[[Observer], RunHandle], as_json: bool) -> RunResult:
    """Start a run, show it live, and return its result; Ctrl-C cancels it."""
    from ml_experiments.runner.live_display import live_display
    from ml_experiments.runner.run import wait_for

    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with aside, live_display(quiet_stdout=as_json) as observer:
        handle = start(observer)
        try:
            return wait_for(handle)
        except KeyboardInterrupt:
            return handle.result()


def report(result: RunResult, as_json: bool) -> int:
    """Print a result and return the exit code that it stands for."""
    from ml_experiments.cli.run_report import print_report

    if as_json:
        click.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        print_report(result)
    return EXIT_CODES[result.status]


def _refuse_modal_options(options: dict[str, Any]) -> dict[str, Any]:
    # not by truth: --cpu 0 was given
    given = [n for n, v in options.items() if not (v is None or v is False or v == ())]
    if given:
        flag = {"secrets": "secret", "memory_gib": "memory"}.get(given[0], given[0])
        raise click.UsageError(f"--{flag.replace('_', '-')} goes with --backend modal")
    return {}
