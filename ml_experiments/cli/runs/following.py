"""`ml-experiments runs follow|logs|wait|cancel`: runs that go on, from any terminal."""

from __future__ import annotations

import datetime
import json
import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING

import click

from ml_experiments.cli.parameters import JSON, Duration
from ml_experiments.cli.runs.finding import find_run, for_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ml_experiments.execution.observer import Observer
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.runs.result import RunResult

_CANCEL_LIMIT_S = 30.0


@click.command()
@click.argument("run")
@JSON
def follow(run: str, as_json: bool) -> int:
    """Show what a run prints until it ends, then its result. Ctrl-C leaves the run alone."""
    from ml_experiments.cli.run import report

    folder = find_run(run)
    with redirect_stdout(sys.stderr) if as_json else nullcontext(), _display(folder) as show:
        outcome = _until_ended(folder, show, is_live=not as_json)
    return report(outcome, as_json)


@click.command()
@click.argument("run")
@click.option("-f", "--follow", "goes_on", is_flag=True, help="Wait for more until the run ends.")
@click.option("--since", help="Only what was printed since: an age, 10m or 2h, or a date.")
def logs(run: str, goes_on: bool, since: str | None) -> None:
    """Print what a run has printed."""
    from ml_experiments.cli.runs.showing import print_log
    from ml_experiments.runner.following import is_without_client

    folder = find_run(run)
    offset = 0 if since is None else _offset_since(folder, since)
    if goes_on and since is not None and is_without_client(folder):
        raise click.UsageError("no client writes the log of this run here; leave out --since")
    if goes_on:
        with _display(folder) as show:
            _until_ended(folder, show, offset=offset)
    else:
        print_log(folder.log_file, offset)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--timeout", type=Duration(), help="Give up after this time; exit code 124.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each run.")
def wait(runs: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait until runs have ended.

    The exit code is that of the first that did not succeed, as for `run`.
    """
    from ml_experiments.cli.run import EXIT_CODES

    def wait_for(folder: RunFolder) -> int:
        result = _until_ended(folder, None, timeout)
        line = json.dumps(result.to_dict()) if as_json else f"{result.run_id}  {result.status}"
        click.echo(line)
        return EXIT_CODES[result.status]

    try:
        return for_each([find_run(run) for run in runs], wait_for)
    except TimeoutError as e:
        click.echo(f"error: {e}", err=True)
        return 124


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--at-once", is_flag=True, help="Without time to save anything.")
def cancel(runs: tuple[str, ...], at_once: bool) -> int:
    """End runs, here or on Modal: by an interrupt, after which a run may save what it has."""
    from ml_experiments.errors import Error
    from ml_experiments.runner.following import ask_to_cancel, has_client, wait_for_end

    def cancel_one(folder: RunFolder) -> int:
        outcome = folder.outcome()
        if outcome.status.has_ended:
            raise Error(f"run {outcome.run_id} has ended with status {outcome.status}")
        if has_client(folder):
            ask_to_cancel(folder, at_once=at_once)
            try:
                outcome = wait_for_end(folder, _CANCEL_LIMIT_S)
            except TimeoutError as e:
                click.echo(f"{e}; it was asked to end: --at-once does not wait for it", err=True)
                return 1
        if not outcome.status.has_ended:  # nobody here sees it through, or not any more
            outcome = _cancel_on_modal(folder, at_once)
        click.echo(f"{outcome.run_id}  {outcome.status}")
        return 0

    return for_each([find_run(run) for run in runs], cancel_one)


def _offset_since(folder: RunFolder, since: str) -> int:
    """Return where in its log begins what a run has printed since a date, or for an age."""
    from ml_experiments.runs.index.filters import parse_moment
    from ml_experiments.runs.log_times import offset_since

    moment = datetime.datetime.fromisoformat(parse_moment(since))
    return offset_since(folder.log_file, moment.timestamp())


def _until_ended(
    folder: RunFolder,
    show: Callable[[bytes], object] | None,
    limit_s: float | None = None,
    *,
    offset: int = 0,
    is_live: bool = False,
) -> RunResult:
    """See a run to its end, wherever it is; show what it prints.

    Args:
        folder: The run folder.
        show: Receives what the run prints, if it is to be shown.
        limit_s: How long to wait at most.
        offset: Where to begin in the log.
        is_live: Whether a run without a process here is shown as `run` does, with its progress.
    """
    from ml_experiments.cli.run import leave
    from ml_experiments.runner.display.observers import Notices
    from ml_experiments.runner.following import follow_log, is_without_client, wait_for_end

    try:
        started = time.monotonic()
        if not is_without_client(folder):
            outcome = follow_log(folder, show, offset) if show else wait_for_end(folder, limit_s)
            if outcome.status.has_ended:
                return outcome
            click.echo(
                "the process that saw the run through is gone; the run goes on, and is followed "
                "from the beginning",
                err=True,
            )
        left = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - started))
        return _collect(folder, None if is_live else Notices(show), left)
    except KeyboardInterrupt:
        leave(folder.path.name, 130)


def _collect(folder: RunFolder, observer: Observer | None, limit_s: float | None) -> RunResult:
    from ml_experiments.backends import open_backend
    from ml_experiments.cli.run import leave
    from ml_experiments.runner.resume import attach_run

    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:
        if (outcome := folder.outcome()).status.has_ended:  # another process has collected it
            return outcome
        handle = attach_run(folder, backend=backend, observer=observer)
        try:
            return handle.result(limit_s)
        except (TimeoutError, KeyboardInterrupt) as e:
            leave(spec.run_id, 124 if isinstance(e, TimeoutError) else 130)


def _cancel_on_modal(folder: RunFolder, at_once: bool) -> RunResult:
    from ml_experiments.backends import open_backend
    from ml_experiments.execution.observer import Observer
    from ml_experiments.runner.resume import attach_run

    spec = folder.read_spec()
    with open_backend(spec.backend, **spec.backend_options) as backend:
        handle = attach_run(folder, backend=backend, observer=Observer())
        handle.cancel(at_once=at_once)
        return handle.result()


@contextmanager
def _display(folder: RunFolder) -> Iterator[Callable[[bytes], object]]:
    """Give what shows pieces of a log, which may be cut amid a character, as `run` does."""
    from ml_experiments.execution.logs import WholeCharacters
    from ml_experiments.runner.display.observers import DISPLAY

    spec, whole = folder.read_spec(), WholeCharacters()
    try:
        yield lambda data: DISPLAY.log(spec, whole.feed(data))
    finally:
        DISPLAY.log(spec, whole.flush())
        DISPLAY.forget(spec.run_id)
