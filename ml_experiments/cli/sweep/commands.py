"""`ml-experiments sweep`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
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
from ml_experiments.cli.run import BACKEND, SLURM, RunCommand, backend_of, confirm_cost
from ml_experiments.runner.display.printable import printable
from ml_experiments.runner.options import RunOptions
from ml_experiments.runner.sweeps.options import SweepOptions

if TYPE_CHECKING:
    from ml_experiments.backends.forecast import Forecast
    from ml_experiments.runner.detached.supervisor import SweepRequest
    from ml_experiments.runner.sweeps.controller import Progress
    from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
    from ml_experiments.runner.sweeps.points import SweepPoint

_DETACH = click.option("--detach", is_flag=True, help="Return once it has begun; it goes on.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Check all points, and start none.")
_YES = yes_option("the sweep")
_CSV = csv_option("points")
_MAX_COST = max_cost_option("points")


def _may_be_command(word: str) -> bool:
    """Return whether a word looks like a command, mistyped or another group's, and no file."""
    return word.isalpha() and not Path(f"{word}.py").is_file() and not Path(word).exists()


class StartGroup(click.Group):
    """Takes what is not the name of a sub-command for the beginning of `start`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_command = args and (args[0] in self.commands or _may_be_command(args[0]))
        if args and not is_command and args[0] not in ctx.help_option_names:
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group(cls=StartGroup)
def sweep() -> None:
    """Run an experiment at many points: `sweep CLASS_PATH lr=1e-4,3e-4 seed=range:5`.

    `sweep CLASS_PATH …` is short for `sweep start CLASS_PATH …`. SWEEP is the id of a sweep, the
    beginning of one, its name, or `last`.
    """


@sweep.command(cls=RunCommand)
@click.argument("class_path")
@click.argument("axes", nargs=-1, metavar="[KEY=VALUES]...")
@CONFIG
@click.option("--space", "space_file", type=click.Path(path_type=Path), help="Axes as YAML.")
@BACKEND
@options_of(SweepOptions)
@click.option("--keep-going", is_flag=True, help="Run the other points after a failure (default).")
@options_of(RunOptions)
@options_of(ModalOptions)
@SLURM
@click.option("-m", "--multirun", is_flag=True, hidden=True)  # a habit from Hydra
@_DRY_RUN
@_YES
@_DETACH
@JSON
@_CSV
def start(
    class_path: str,
    axes: tuple[str, ...],
    config_file: Path | None,
    space_file: Path | None,
    backend: str | None,
    keep_going: bool,
    dry_run: bool,
    yes: bool,
    detach: bool,
    as_json: bool,
    as_csv: bool,
    **_options: Any,
) -> int:
    """Run an experiment at the points of a search space.

    KEY=VALUES is one axis:

    \b
    lr=1e-4,3e-4           these values; [64,64],[128] for lists
    seed=range:5           0 to 4; range:1:5, range:0:10:2
    layers=int:1:8         1 to 8
    dropout=uniform:0:0.5  any number between; uniform:0:0.5:0.1 in steps
    wd=log:1e-5:1e-2       any number between, on a log scale; logint for whole numbers
    prompt=file:a.txt      one value a line

    'range(5)', 'log(1e-5,1e-2)', 'choice(a,b)' are the same, in quotes. A single value is the
    same for all points. Exit codes: 0 all points succeeded, 1 some did not, 2 bad usage or a point
    that is not valid (nothing was started), 130 interrupted.
    """
    from ml_experiments.cli.sweep.report import print_checked
    from ml_experiments.config.files import read_config_file
    from ml_experiments.experiment.reference import parse_experiment_path
    from ml_experiments.runner.sweeps.checking import check_points
    from ml_experiments.runner.sweeps.planning import plan_sweep
    from ml_experiments.runner.sweeps.search_space.space import overrides_in, read_space
    from ml_experiments.runner.sweeps.sweep import opened, start_sweep
    from ml_experiments.settings import runs_dir

    options, of_sweep = given_options(RunOptions), given_options(SweepOptions)
    backend_name, for_backend = backend_of(backend, options)
    if keep_going and of_sweep.get("fail_fast"):
        raise click.UsageError("--keep-going and --fail-fast exclude each other")
    prefetch = options.pop("prefetch", False)
    parse_experiment_path(class_path)  # first: it may be a misspelt command
    space = read_space(axes, space_file)
    fixed = list(overrides_in(read_config_file(config_file))) if config_file else []
    spec = plan_sweep(
        class_path,
        space,
        fixed=fixed,
        backend=backend_name,
        backend_options=for_backend,
        **options,
        **of_sweep,
    )
    form = format_of(as_json, as_csv)
    _check_detach(detach, dry_run=dry_run, as_csv=as_csv)
    _print_space(spec, form)
    if dry_run:
        with opened(spec) as place:
            checked = check_points(spec, place)
            checked.check_room(spec, place, runs_dir())
            print_checked(spec, len(checked.setup_keys), checked.forecast, form)
        return 0
    approve = _asking(form, is_approved=yes)

    if detach and backend_name == "modal":
        from ml_experiments.runner.detached.sweep_on_modal import (
            can_be_on_modal,
            start_sweep_on_modal,
        )

        if can_be_on_modal(spec):
            say = _saying(as_json)
            begun = start_sweep_on_modal(
                spec, runs_dir(), prefetch=prefetch, approve=approve, say=say
            )
            return _print_handed_over(begun, begun.remote_file.exists(), as_json)
        _say_why_here(spec)
    if detach:
        from ml_experiments.runner.detached.supervisor import SweepRequest

        return _detach(SweepRequest(spec, prefetch=prefetch, is_approved=yes), as_json)
    view = _View(form)

    points = start_sweep(
        spec,
        runs_dir=None,
        observer=view.observer,
        prefetch=prefetch,
        approve=approve,
        on_begin=view.begin,
    )
    view.follow(points)
    return view.report()


@sweep.command()
@click.argument("sweep_reference", metavar="SWEEP")
@click.option("--failed", "failed_only", is_flag=True, help="Only the points that have failed.")
@_MAX_COST
@_DRY_RUN
@_YES
@_DETACH
@JSON
@_CSV
def resume(sweep_reference: str, failed_only: bool, **choices: Any) -> int:
    """Run the points of a sweep that have no result yet.

    A point that was begun goes on in its run folder, from its checkpoints. A sampler suggests what
    it would have suggested without the interruption.
    """
    return _take_up(_find_to_resume(sweep_reference), failed_only=failed_only, **choices)


@sweep.command()
@click.argument("sweep_reference", metavar="SWEEP")
@click.argument("axes", nargs=-1, metavar="[KEY=VALUES]...")
@click.option("--trials", type=int, help="How many points a sampler suggests in all.")
@_MAX_COST
@_DRY_RUN
@_YES
@_DETACH
@JSON
@_CSV
def extend(sweep_reference: str, axes: tuple[str, ...], trials: int | None, **choices: Any) -> int:
    """Add values to the axes of a grid, widen those of a sampler, or raise its trials; then resume.

    What has run does not run again.
    """
    if not axes and trials is None:
        raise click.UsageError("nothing to extend: write seed=range:10, or --trials N")
    return _take_up(_find_to_resume(sweep_reference), axes=axes, trials=trials, **choices)


@sweep.command()
@click.argument("sweep_reference", metavar="SWEEP")
@click.option("--importances", is_flag=True, help="Say how much each axis matters, or why not.")
@JSON
@_CSV
def show(sweep_reference: str, importances: bool, as_json: bool, as_csv: bool) -> int:
    """Show the space of a sweep, how far it is, and its points, the best first."""
    from ml_experiments.cli.sweep.report import print_report
    from ml_experiments.runner.sweeps.controller import Progress
    from ml_experiments.runner.sweeps.recorded import count_repeated, recorded_points

    folder = _find(sweep_reference)
    goes_on = _look_on_modal(folder) if folder.remote_file.exists() else folder.is_running
    spec, points = folder.read_spec(), recorded_points(folder)
    progress = Progress(spec.total or 0, [p for p in points if p.result.status.has_ended])
    progress.running = {p.number: p.overrides for p in points if not p.result.status.has_ended}
    progress.repeated = count_repeated(folder, points)
    progress.stopped = folder.read_stop()
    form = format_of(as_json, as_csv)
    if form == "table":
        _print_space(spec, form)
    print_report(folder, spec, progress, form, wants_importances=importances, goes_on=goes_on)
    return 0


@sweep.command()
@click.argument("sweep_reference", metavar="SWEEP")
def stop(sweep_reference: str) -> int:
    """Let a running sweep start no more points, and cancel those that run."""
    folder = _find(sweep_reference)
    if _goes_on_on_modal(folder):
        from ml_experiments.runner.detached.remote_sweeps import stop_on_modal

        stop_on_modal(folder)
        click.echo(f"sweep {folder.path.name} stops; go on with: ml-experiments sweep resume")
        return 0
    if not folder.is_running:
        click.echo(f"sweep {folder.path.name} is not running")
        return 0
    folder.stop_file.touch()
    click.echo(f"sweep {folder.path.name} stops; go on with: ml-experiments sweep resume")
    return 0


def _take_up(
    folder: SweepFolder,
    *,
    failed_only: bool = False,
    axes: tuple[str, ...] = (),
    trials: int | None = None,
    max_cost: float | None,
    dry_run: bool,
    yes: bool,
    detach: bool,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Resume a sweep, or extend it if there are axes or trials; return the exit code."""
    from ml_experiments.cli.sweep.report import print_checked
    from ml_experiments.runner.detached.supervisor import SweepRequest
    from ml_experiments.runner.sweeps.sweep import resume_sweep

    form = format_of(as_json, as_csv)
    _check_detach(detach, dry_run=dry_run, as_csv=as_csv)
    request = SweepRequest(
        folder=folder,
        failed_only=failed_only,
        axes=axes,
        trials=trials,
        max_cost=max_cost,
        is_approved=yes,
    )
    approve = _asking(form, is_approved=yes)
    if detach and (spec := folder.read_spec()).backend == "modal":
        from ml_experiments.runner.detached.sweep_on_modal import (
            can_be_on_modal,
            resume_sweep_on_modal,
        )

        if can_be_on_modal(spec):
            say, change = _saying(as_json), request.change
            has_begun = resume_sweep_on_modal(
                folder, failed_only=failed_only, change=change, approve=approve, say=say
            )
            return _print_handed_over(folder, has_begun, as_json)
        _say_why_here(spec)
    if detach:
        return _detach(request, as_json)

    def print_found(_folder: SweepFolder, spec: SweepSpec, progress: Progress) -> None:
        print_checked(spec, progress.to_run, progress.forecast, form)

    view = _View(form)

    def begin(folder: SweepFolder, spec: SweepSpec, progress: Progress) -> None:
        if folder.remote_file.exists():
            from ml_experiments.runner.detached.remote_sweeps import control_here

            control_here(folder)
        view.begin(folder, spec, progress)
        if axes and spec.sampler != "grid" and not progress.to_run:
            click.echo("all trials have run: --trials N suggests points of the new space", err=True)

    points = resume_sweep(
        folder,
        observer=view.observer,
        failed_only=failed_only,
        change=request.change,
        approve=approve,
        on_begin=print_found if dry_run else begin,
        dry_run=dry_run,
    )
    view.follow(points)
    return 0 if dry_run else view.report()


def _asking(form: Format, *, is_approved: bool) -> Callable[[Forecast], None]:
    """Return what says what points are going to cost, and asks if that is much."""

    def ask(forecast: Forecast) -> None:
        from ml_experiments.runner.budget.reserving import above_limit

        click.echo(str(forecast), err=form != "table")
        confirm_cost(None if is_approved else above_limit(forecast, "the sweep"))

    return ask


def _check_detach(detach: bool, *, dry_run: bool, as_csv: bool) -> None:
    if detach and (dry_run or as_csv):
        raise click.UsageError("--detach starts a sweep; it can't go with --dry-run or --csv")


class _View:
    """Shows a sweep while it runs, and reports on it at the end."""

    def __init__(self, form: Format) -> None:
        from ml_experiments.execution.observer import Observer

        self.observer = Observer()  # what the runs print is in their logs
        self._form = form
        self._begun: tuple[SweepFolder, SweepSpec, Progress] | None = None
        self._was_interrupted = False
        self._stack = contextlib.ExitStack()

    def begin(self, folder: SweepFolder, spec: SweepSpec, progress: Progress) -> None:
        """Show a sweep from now on."""
        from ml_experiments.cli.sweep.report import live_view

        self._begun = folder, spec, progress
        click.echo(printable(f"sweep {spec.sweep_id} in {folder.path}"), err=self._form != "table")
        self._show = self._stack.enter_context(live_view(spec, progress, self._form))

    def follow(self, points: Iterator[SweepPoint]) -> None:
        """Show the points of a sweep as they end."""
        with self._stack:
            try:
                for point in points:
                    self._show(point)
            except KeyboardInterrupt:
                if self._begun is None:
                    raise
                self._was_interrupted = True

    def report(self) -> int:
        """Print the ranked points; return the exit code."""
        from ml_experiments.cli.sweep.report import exit_code, print_report

        assert self._begun is not None
        folder, spec, progress = self._begun
        print_report(folder, spec, progress, self._form)
        return 130 if self._was_interrupted else exit_code(spec, progress)


def _detach(request: SweepRequest, as_json: bool) -> int:
    """Start a sweep that goes on without this process; print how to come back to it."""
    from ml_experiments.runner.detached.supervisor import start_detached_sweep

    return _print_detached(start_detached_sweep(request), "without this terminal", as_json)


def _saying(as_json: bool) -> Callable[[str], None]:
    return lambda text: click.echo(text, err=as_json)


def _say_why_here(spec: SweepSpec) -> None:
    click.echo(
        "the sweep is controlled on this machine: --reuse looks for earlier runs here, and which "
        f"points {spec.sampler} suggests isn't known yet",
        err=True,
    )


def _print_handed_over(folder: SweepFolder, has_begun: bool, as_json: bool) -> int:
    if has_begun or as_json:
        return _print_detached(folder, "in a container on Modal", as_json)
    click.echo(f"sweep {folder.path.name}: no point is left to run; nothing was started")
    return 0


def _print_detached(folder: SweepFolder, where: str, as_json: bool) -> int:
    sweep_id = folder.path.name
    if as_json:
        click.echo(json.dumps({"sweep_id": sweep_id, "folder": str(folder.path)}))
        return 0
    click.echo(f"sweep {sweep_id} goes on {where}")
    for command in ("show", "stop"):
        click.echo(f"  ml-experiments sweep {command} {sweep_id}")
    return 0


def _print_space(spec: SweepSpec, form: Format) -> None:
    from ml_experiments.runner.sweeps.planning import describe_choice

    axes = spec.space.axes
    width = max(len(axis.name) for axis in axes)
    for axis in axes:
        count = len(axis.grid) if axis.grid is not None else 0
        values = f"  ({count:,} values)" if count > 1 else ""
        line = f"{axis.name:<{width}}  {axis.describe()}{values}"
        click.echo(printable(line), err=form != "table")
    click.echo(describe_choice(spec), err=form != "table")


def _goes_on_on_modal(folder: SweepFolder) -> bool:
    if not folder.remote_file.exists():
        return False
    from ml_experiments.runner.detached.remote_sweeps import goes_on_there

    return goes_on_there(folder)


def _look_on_modal(folder: SweepFolder) -> bool:
    """Bring what a controller on Modal has left of a sweep so far; return whether it goes on."""
    from ml_experiments.errors import BackendError
    from ml_experiments.runner.detached.remote_sweeps import bring_sweep_here, goes_on_there

    try:
        goes_on = goes_on_there(folder)  # first: what comes after its end is all
        bring_sweep_here(folder.path.name, folder.runs_dir)
        return goes_on or goes_on_there(folder)  # another machine may have taken it up
    except BackendError as e:
        click.echo(f"what is known here is shown: {e}", err=True)
        return False


def _find_to_resume(reference: str) -> SweepFolder:
    folder = _find(reference)
    if folder.remote_file.exists():
        from ml_experiments.runner.detached.remote_sweeps import bring_end_here

        bring_end_here(folder)
    return folder


def _find(reference: str) -> SweepFolder:
    from ml_experiments.runner.sweeps.folder import find_sweep
    from ml_experiments.settings import runs_dir

    return find_sweep(runs_dir(), reference)
