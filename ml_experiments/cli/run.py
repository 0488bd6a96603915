"""`ml-experiments run`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ml_experiments.backends.modal.options import ModalOptions
from ml_experiments.backends.slurm.options import SlurmOptions
from ml_experiments.cli.bell import bell_when_long
from ml_experiments.cli.parameters import (
    CONFIG,
    JSON,
    Tag,
    flag_of,
    given_options,
    options_of,
    read_pairs,
    yes_option,
)
from ml_experiments.config.options import descriptions
from ml_experiments.errors import ConfigError, ExperimentPathError, suggest
from ml_experiments.runner.options import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ml_experiments.backends.base import Backend, RunHandle
    from ml_experiments.runs.result import RunResult
    from ml_experiments.runs.spec import PreparedRun

_PLURALS = {
    "artifact": "artifacts",
    "entry of metrics": "entries of metrics",
    "checkpoint": "checkpoints",
}
BACKEND = click.option(
    "--backend",
    default=None,
    help="local, modal or slurm; modal with --gpu or --escalate, slurm with --slurm.",
)
SLURM = click.option(
    "--slurm",
    "slurm_options",
    type=Tag(),
    multiple=True,
    help="Option of the Slurm backend, such as partition=gpu. Repeatable.",
)
EXIT_CODES = {"success": 0, "error": 1, "cancelled": 130}


class RunCommand(click.Command):
    """Takes a config field that was written as an option for what it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # click takes them out one by one
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            start = e.option_name
            index, word = next((i, w) for i, w in enumerate(given) if w.startswith(start))
            field, _, value = word.lstrip("-").partition("=")
            following = given[index + 1] if index + 1 < len(given) else ""
            value = value or ("VALUE" if following.startswith("-") else following or "VALUE")
            if field.startswith("no-") and value == "VALUE":
                field, value = field.removeprefix("no-"), "false"
            # without their dashes, which make short names look alike
            given_as_flags = [each for each in self.params if isinstance(each, click.Option)]
            options = [flag.lstrip("-") for each in given_as_flags for flag in each.opts]
            meant = suggest(start.lstrip("-"), options).replace("mean '", "mean '--")
            raise click.UsageError(
                f"no such option {word.partition('=')[0]!r}{meant}; a field of the config is set "
                f"without dashes: {field.replace('-', '_')}={value}"
            ) from e
        self._refuse_repeated(ctx, given)
        return rest

    def _refuse_repeated(self, ctx: click.Context, args: list[str]) -> None:
        """Refuse an option of one value that is given again: only the last one would count."""
        *_, order = self.make_parser(ctx).parse_args(args=args)
        options = [param for param in order if isinstance(param, click.Option)]
        counts = Counter(o.opts[0] for o in options if not (o.multiple or o.is_flag))
        for option in set(options):
            if isinstance(option.type, Tag) and option.name != "slurm_options":  # some are lists
                counts.update(f"{option.opts[0]} {key}" for key, _ in ctx.params[option.name or ""])
        for flag, count in counts.items():
            if count > 1:
                several = "; several in one: --gpu t4,l4" if flag == "--gpu" else ""
                raise click.UsageError(f"{flag} was given {count} times{several}", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; where it isn't one, or an option was written as a field, say so."""
        try:
            return super().invoke(ctx)
        except ExperimentPathError as e:
            from ml_experiments.cli.main import commands_called

            meant = commands_called(str(ctx.params.get("class_path")))
            if not meant:
                raise
            raise ExperimentPathError(f"{e}; the command is {' or '.join(meant)}") from e
        except ConfigError as e:
            options = [each for each in self.params if isinstance(each, click.Option)]
            flags = {each.name: each.opts[0] for each in options}
            flags |= {o.lstrip("-").replace("-", "_"): o for each in options for o in each.opts}
            found = [flags[name] for name in e.unknown_fields if name in flags]
            if not found:
                raise
            hint = "an option of the command is set with dashes, as in"
            message = str(e).splitlines()[0]
            raise ConfigError(message, (*e.problems, f"{hint} {found[0]} VALUE")) from e


@click.command(cls=RunCommand)
@click.argument("class_path")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@CONFIG
@BACKEND
@options_of(RunOptions)
@options_of(ModalOptions)
@SLURM
@click.option("--dry-run", is_flag=True, help="Print the run spec that would be submitted.")
@click.option(
    "--explain-reuse",
    is_flag=True,
    help="Print which run --reuse returns, or what differs from the nearest; start nothing.",
)
@JSON
@yes_option("the run")
@click.option("--debug", is_flag=True, help="Run in this process, for a debugger.")
@click.option("--detach", is_flag=True, help="Return once the run is accepted; it goes on.")
@click.option(
    "--on-interrupt",
    type=click.Choice(["cancel", "detach"]),
    default="cancel",
    show_default=True,
    help="What Ctrl-C does; detach is for runs on Modal or Slurm.",
)
def run(
    class_path: str,
    overrides: tuple[str, ...],
    config_file: Path | None,
    backend: str | None,
    dry_run: bool,
    explain_reuse: bool,
    as_json: bool,
    yes: bool,
    debug: bool,
    detach: bool,
    on_interrupt: str,
    **_options: Any,
) -> int:
    """Run an experiment: a class with run(), or a function.

    CLASS_PATH is pkg.module.Class, pkg.module:Class or path/to/file.py:Class. KEY=VALUE sets a
    config field, as in prompt="a red seven" optimizer.lr=3e-4 sizes=[1,2]; later ones win.

    Exit codes: 0 success, 1 the run ended in an error, 2 bad usage or config (nothing was
    started), 130 interrupted. With --explain-reuse, 0 if a run can be reused, else 1.
    """
    if detach:
        other_end = dry_run or debug or explain_reuse
        return _run_detached(class_path, overrides, config_file, backend, as_json, yes, other_end)
    from ml_experiments.execution.worker.process import start_template
    from ml_experiments.experiment.reference import locate

    place = locate(class_path)
    # it imports the experiment while this process imports what a run takes
    template = None if debug else start_template(*place)
    from ml_experiments.backends import open_backend
    from ml_experiments.config.loading import load_config
    from ml_experiments.redaction.redactor import Redactor
    from ml_experiments.runner.budget.reserving import reserve
    from ml_experiments.runner.prepare import prefetch_models, prepare_run
    from ml_experiments.runner.run import submit_run, take_earlier
    from ml_experiments.runs.folder import SPEC_USER_DATA
    from ml_experiments.settings import runs_dir

    config = load_config(config_file, overrides)
    options = given_options(RunOptions)
    backend_name, for_backend = backend_of(backend, options)
    if on_interrupt == "detach" and backend_name not in ("modal", "slurm"):
        raise click.UsageError(
            "--on-interrupt detach goes with --backend modal or slurm; a run on this machine goes "
            "on without the terminal if it is started with --detach"
        )
    if debug:
        if backend_name != "local":
            raise click.UsageError("--debug runs in this process; it can't go with another backend")
        backend_name = "debug"
    prefetch = options.pop("prefetch", False)
    with open_backend(backend_name, **for_backend) as opened:
        if template is not None:
            opened.templates.adopt(*place, template)
        prepared = prepare_run(class_path, config, backend=opened, **options)
        if dry_run:
            [prepared] = reserve([prepared], opened, runs_dir(), is_kept=False)
            record = Redactor(prepared.secrets).redact_record(
                prepared.spec.to_dict(), SPEC_USER_DATA
            )
            forecast = prepared.forecast
            record["forecast"] = None if forecast is None else forecast.to_dict()
            click.echo(json.dumps(record, indent=None if as_json else 2))
            return 0
        if explain_reuse:
            return _explain_reuse(prepared, opened, as_json)
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            earlier, prepared = take_earlier(prepared, opened)
            if earlier is not None:
                result = follow(lambda: earlier, as_json, leaves_on_interrupt=True)
        if earlier is not None:
            return report(result, as_json)
        approve_cost(prepared, opened, yes=yes, may_ask=True)

        def download() -> None:
            prefetch_models(prepared, backend=opened)

        def start() -> RunHandle:
            return submit_run(prepared, backend=opened)

        with bell_when_long():
            result = follow(
                start,
                as_json,
                before=download if prefetch else None,
                leaves_on_interrupt=on_interrupt == "detach",
            )
        code = report(result, as_json)
        if result.status == "cancelled":
            say_what_was_kept(result, opened)
    return code


def backend_of(given: str | None, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the backend that runs are for, and its options on the command line.

    Args:
        given: The option `--backend`.
        options: The options of the runs.

    Raises:
        click.UsageError: If options were given that another one has.
    """
    for_modal = given_options(ModalOptions)
    pairs = click.get_current_context().params["slurm_options"]
    is_for_modal = "gpu" in options or ("escalate" in options and "escalate_to" not in options)
    by_default = "slurm" if pairs else "modal" if is_for_modal else "local"
    name = given or by_default
    if for_modal and name != "modal":
        option = next(iter(for_modal))
        flag = flag_of(option, descriptions(ModalOptions)[option][0])
        raise click.UsageError(f"{flag} goes with --backend modal")
    if pairs and name != "slurm":
        raise click.UsageError("--slurm goes with --backend slurm")
    return name, for_modal or read_pairs(SlurmOptions, pairs, "--slurm")


def _explain_reuse(prepared: PreparedRun, backend: Backend, as_json: bool) -> int:
    """Print which earlier run could be reused, or what differs from the nearest one."""
    from ml_experiments.cli.table import Column, print_table
    from ml_experiments.runner.display.printable import printable_lines
    from ml_experiments.runner.reuse.finding import find_earlier
    from ml_experiments.settings import runs_dir

    search = find_earlier(prepared, backend, runs_dir())
    if as_json:
        click.echo(json.dumps(search.to_dict()))
        return 0 if search.found else 1
    click.echo(printable_lines(str(search)))
    if search.nearest is not None:
        columns = [Column("differs"), Column(search.nearest.path.name, is_cut=True)]
        rows = [(each.what, each.first, each.second) for each in search.differences]
        print_table((*columns, Column("now", is_cut=True)), rows)
    return 0 if search.found else 1


def _run_detached(
    class_path: str,
    overrides: tuple[str, ...],
    config_file: Path | None,
    backend: str | None,
    as_json: bool,
    yes: bool,
    has_other_end: bool,
) -> int:
    """Start a run that goes on without this process; print how to come back to it."""
    if has_other_end:
        raise click.UsageError(
            "--detach starts a run; it can't go with --dry-run, --explain-reuse or --debug"
        )
    from ml_experiments.config.loading import load_config
    from ml_experiments.runner.detached.supervisor import start_detached

    options = given_options(RunOptions)
    backend_name, for_backend = backend_of(backend, options)
    folder, is_new = start_detached(
        class_path,
        load_config(config_file, overrides),
        backend=backend_name,
        backend_options=for_backend,
        options=options,
        is_approved=yes,
    )
    run_id = folder.path.name
    if as_json:
        record = {"run_id": run_id, "run_dir": str(folder.path), "is_new": is_new}
        click.echo(json.dumps(record))
        return 0
    if not is_new:
        click.echo(f"  ml-experiments runs follow {run_id}")
        return 0
    is_there = folder.read_manifest().controller is not None
    what = "machine: a container on Modal makes its attempts" if is_there else "terminal"
    click.echo(f"run {run_id} goes on without this {what}")
    for command in ("follow", "logs", "wait", "cancel"):
        click.echo(f"  ml-experiments runs {command} {run_id}")
    return 0


def follow(
    start: Callable[[], RunHandle],
    as_json: bool,
    before: Callable[[], object] | None = None,
    *,
    leaves_on_interrupt: bool = False,
) -> RunResult:
    """Start a run, show it live, and return its result; Ctrl-C cancels it.

    Args:
        start: Starts it, and returns at once.
        as_json: Whether stdout is kept for the result.
        before: Called first; Ctrl-C ends it, and nothing is started.
        leaves_on_interrupt: Whether Ctrl-C leaves the run alone instead, and ends this process.
    """
    from ml_experiments.execution.interruptions import held_interrupt
    from ml_experiments.runner.run import wait_for

    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with aside:
        if before is not None:
            before()
        with held_interrupt() as interrupt:  # else a run that has started could go unnoticed
            handle = start()
        if leaves_on_interrupt:
            try:
                if not interrupt.fired:
                    return handle.result()
            except KeyboardInterrupt:
                pass
            leave(handle.run_id)
        if interrupt.fired:
            handle.cancel()
        try:
            return wait_for(handle)
        except KeyboardInterrupt:
            return handle.result()


def say_what_was_kept(result: RunResult, backend: Backend) -> None:
    """Say what a cancelled run has left, and how it goes on from there."""
    from ml_experiments.errors import BackendError
    from ml_experiments.runs.folder import RunFolder

    assert result.run_dir is not None  # a run that was started here has one
    counts = {"artifact": len(result.artifacts), "entry of metrics": len(result.metrics)}
    try:
        files = backend.checkpoint_files(RunFolder(result.run_dir))
        names = {name.partition("/")[0] for name in files}
        counts["checkpoint"] = len([name for name in names if not name.startswith(".")])
    except BackendError as e:  # such as a connection that was lost
        click.echo(f"which checkpoints there are is not known: {e}", err=True)
    kept = [
        f"{count} {what if count == 1 else _PLURALS[what]}"
        for what, count in counts.items()
        if count
    ]
    click.echo(
        f"kept: {', '.join(kept) or 'only the log'}; go on with: "
        f"ml-experiments runs resume {result.run_id}",
        err=True,
    )


def leave(run_id: str, code: int = 130) -> NoReturn:
    """Say that a run goes on, and end this process without waiting for the run."""
    from ml_experiments.runner.display.observers import DISPLAY

    DISPLAY.forget(run_id)
    click.echo(f"run {run_id} goes on; come back to it with:", err=True)
    for command in ("follow", "logs", "cancel"):
        click.echo(f"  ml-experiments runs {command} {run_id}", err=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # to close the backend would wait for the run


def approve_cost(prepared: PreparedRun, backend: Backend, *, yes: bool, may_ask: bool) -> None:
    """Ask before a run that may cost more than the setting `ask_above`.

    Raises:
        BudgetError: If the answer is no, or there is no terminal to ask on.
    """
    from ml_experiments.runner.budget.reserving import above_asking, refuse_above_asking
    from ml_experiments.settings import runs_dir

    if yes:
        return
    if not (may_ask and sys.stdin.isatty()):
        refuse_above_asking(prepared, backend, runs_dir())
        return
    above = above_asking(prepared, backend, runs_dir())
    confirm_cost(above)


def confirm_cost(above: str | None) -> None:
    """Ask whether to start something that may cost more than the setting `ask_above`.

    Raises:
        BudgetError: If the answer is no, or there is no terminal to ask on.
    """
    from ml_experiments.errors import BudgetError

    if above is None:
        return
    if not sys.stdin.isatty():
        raise BudgetError(f"{above}, and nobody was asked; --yes starts it")
    if not click.confirm(f"{above}. Start it?", err=True):
        raise BudgetError("nothing was started")


def report(result: RunResult, as_json: bool) -> int:
    """Print a result and return the exit code that it stands for."""
    from ml_experiments.cli.run_report import print_report

    if as_json:
        click.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        print_report(result)
    return EXIT_CODES[result.status]
