"""`ml-experiments bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.backends.modal.options import ModalOptions
from ml_experiments.cli.parameters import (
    CONFIG,
    JSON,
    Format,
    csv_option,
    format_of,
    given_options,
    max_cost_option,
    options_of,
    yes_option,
)
from ml_experiments.cli.run import RunCommand
from ml_experiments.cli.sweep.commands import StartGroup
from ml_experiments.runner.bench.options import BenchOptions
from ml_experiments.runner.display.printable import printable

if TYPE_CHECKING:
    from ml_experiments.backends.forecast import Forecast
    from ml_experiments.runner.bench.bench import BenchReport
    from ml_experiments.runner.bench.cases import EndedRun
    from ml_experiments.runner.bench.folder import BenchFolder, BenchSpec

_CSV = csv_option("rows")
_YES = yes_option("the bench")
_PLOT = click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    help="Draw cost against speed: a .png, .svg or .pdf.",
)


@click.group(cls=StartGroup)
def bench() -> None:
    """Compare GPU types: `bench CLASS_PATH --gpu t4,l4,h100`.

    `bench CLASS_PATH …` is short for `bench start CLASS_PATH …`. BENCH is the id of a bench, the
    beginning of one, its name, or `last`.
    """


@bench.command(cls=RunCommand)
@click.argument("class_path")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@CONFIG
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values to compare, as in batch_size=1,4,16. Repeatable: all combinations.",
)
@click.option("--backend", default=None, help="local or modal; modal when --gpu is given.")
@options_of(BenchOptions)
@click.option("--prefetch", is_flag=True, help="Download the models that the config names first.")
@options_of(ModalOptions)
@click.option("--dry-run", is_flag=True, help="Check all cases, and start none.")
@_YES
@JSON
@_CSV
@_PLOT
def start(
    class_path: str,
    overrides: tuple[str, ...],
    config_file: Path | None,
    vary: tuple[str, ...],
    backend: str | None,
    prefetch: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    as_csv: bool,
    plot_file: Path | None,
    **_options: Any,
) -> int:
    """Measure an experiment on GPU types, or on this machine without --gpu.

    Each case, a GPU type with one set of --vary's values, runs once to warm up and then --repeat
    times, in the same container. What is shown per output is run() alone; the start of the
    container and the set-up stand apart. A case that runs out of memory is a row.

    Exit codes: 0 every case was measured and counted, or ran out of memory, 1 some were not, 2 bad
    usage or a case that is not valid (nothing was started), 130 interrupted.
    """
    from ml_experiments.config.files import read_config_file
    from ml_experiments.runner.bench.bench import check_bench, opened, plan_bench, run_bench
    from ml_experiments.runner.bench.plot import check_plot
    from ml_experiments.runner.sweeps.search_space.space import overrides_in, read_space
    from ml_experiments.settings import runs_dir

    form = format_of(as_json, as_csv)
    for_modal = given_options(ModalOptions)
    fixed = list(overrides_in(read_config_file(config_file))) if config_file else []
    spec = plan_bench(
        class_path,
        read_space(vary) if vary else None,
        fixed=(*fixed, *overrides),
        backend=backend,
        backend_options=for_modal,
        **given_options(BenchOptions),
    )
    if spec.backend != "modal":
        if for_modal:
            raise click.UsageError("options of Modal go with --gpu, or --backend modal")
        if plot_file is not None:
            raise click.UsageError(
                "--plot draws cost against speed, and runs on this machine cost nothing"
            )
    if plot_file is not None:
        check_plot(plot_file)
    if dry_run:
        from ml_experiments.cli.bench.report import print_plan

        with opened(spec) as place:
            print_plan(spec, check_bench(spec, place, runs_dir()).forecast, form, is_all=True)
        click.echo("nothing was started", err=form != "table")
        return 0

    def measure(view: _View) -> BenchReport:
        return run_bench(
            spec,
            prefetch=prefetch,
            approve=_approve(yes),
            on_begin=view.begin,
            on_run=view.show,
        )

    return _follow(measure, form, plot_file)


@bench.command()
@click.argument("reference", metavar="BENCH")
@max_cost_option("runs")
@_YES
@JSON
@_CSV
@_PLOT
def resume(
    reference: str,
    max_cost: float | None,
    yes: bool,
    as_json: bool,
    as_csv: bool,
    plot_file: Path | None,
) -> int:
    """Run the cases again that were not measured to their end."""
    from ml_experiments.runner.bench.bench import resume_bench
    from ml_experiments.runner.bench.plot import check_plot

    if plot_file is not None:
        check_plot(plot_file)
    folder = _find(reference)

    def measure(view: _View) -> BenchReport:
        return resume_bench(
            folder,
            max_cost=max_cost,
            approve=_approve(yes),
            on_begin=view.begin,
            on_run=view.show,
        )

    return _follow(measure, format_of(as_json, as_csv), plot_file)


@bench.command()
@click.argument("reference", metavar="BENCH")
@click.option("--per", help="What one run puts out, if it shall be counted otherwise.")
@click.option("--latency", help="The logged metric whose percentiles are shown.")
@JSON
@_CSV
@_PLOT
def show(
    reference: str,
    per: str | None,
    latency: str | None,
    as_json: bool,
    as_csv: bool,
    plot_file: Path | None,
) -> int:
    """Show what a bench has measured."""
    from ml_experiments.runner.bench.bench import report_on
    from ml_experiments.runner.bench.plot import check_plot

    if plot_file is not None:
        check_plot(plot_file)
    report = report_on(_find(reference), per=per, latency=latency)
    return _report(report, format_of(as_json, as_csv), plot_file, code=0)


class _View:
    """Shows a bench while it runs."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self.folder: BenchFolder | None = None

    def begin(self, folder: BenchFolder, spec: BenchSpec, forecast: Forecast | None) -> None:
        """Say what is going to be measured."""
        from ml_experiments.cli.bench.report import print_plan

        self.folder = folder
        print_plan(spec, forecast, self._form)
        click.echo(printable(f"bench {spec.bench_id} in {folder.path}"), err=self._form != "table")

    def show(self, ended: EndedRun) -> None:
        """Say that a run has ended."""
        from ml_experiments.cli.bench.report import print_run

        print_run(ended, self._form)


def _follow(measure: Callable[[_View], BenchReport], form: Format, plot_file: Path | None) -> int:
    """Show a bench while it runs, and report on it; return the exit code."""
    from ml_experiments.runner.bench.bench import report_on

    view = _View(form)
    try:
        report = measure(view)
    except KeyboardInterrupt:
        if view.folder is None:
            raise
        return _report(report_on(view.folder), form, None, code=130)
    return _report(report, form, plot_file, code=0 if report.is_whole and report.is_counted else 1)


def _report(report: BenchReport, form: Format, plot_file: Path | None, *, code: int) -> int:
    from ml_experiments.cli.bench.report import print_report

    print_report(report, form)
    if plot_file is not None:
        report.plot(plot_file)
        click.echo(f"plot: {plot_file}", err=form != "table")
    return code


def _approve(yes: bool) -> Callable[[str], bool]:
    """Return what asks whether a bench may cost what it may cost."""
    if yes:
        return lambda _question: True
    if not sys.stdin.isatty():
        return lambda _question: False
    return lambda question: click.confirm(f"{question}. Start it?", err=True)


def _find(reference: str) -> BenchFolder:
    from ml_experiments.runner.bench.folder import find_bench
    from ml_experiments.settings import runs_dir

    return find_bench(runs_dir(), reference)
