"""`ml-experiments check-resume`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ml_experiments.cli.parameters import CONFIG, JSON
from ml_experiments.runner.display.printable import printable

if TYPE_CHECKING:
    from ml_experiments.runner.resume_check.checking import ResumeCheck
    from ml_experiments.runs.result import RunResult

MAX_KILLS = 100
_MAX_DIFFERENCES = 5


@click.command("check-resume")
@click.argument("class_path")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@CONFIG
@click.option(
    "--kills",
    type=click.IntRange(1, MAX_KILLS),
    default=5,
    show_default=True,
    help="How often the run is killed.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of the runs; drawn when not given.")
@click.option(
    "--kill-seed", type=click.IntRange(0), help="What the moments of the kills are drawn with."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="By which part numbers may differ, such as 1e-6; exactly equal by default.",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="NAME",
    help="A metric or result that is not compared, such as a measured time. Repeatable.",
)
@JSON
def check_resume(
    class_path: str,
    overrides: tuple[str, ...],
    config_file: Path | None,
    kills: int,
    seed: int | None,
    kill_seed: int | None,
    tolerance: float,
    ignore: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check that an experiment that is killed and resumed comes to the same.

    It is run on this machine twice with one seed: uninterrupted, and killed at random moments and
    resumed from its checkpoints. Metrics and results are compared. If they differ, a third,
    uninterrupted run tells whether the experiment comes to the same at all.

    Exit codes: 0 the same, 1 it differs or a run failed, 2 the check can't be made, as where the
    experiment saves no checkpoints, 130 interrupted.
    """
    from ml_experiments.config.loading import load_config
    from ml_experiments.runner.resume_check.checking import check_resume as check

    lines = _Lines()
    try:
        outcome = check(
            class_path,
            load_config(config_file, overrides),
            kills=kills,
            seed=seed,
            kill_seed=kill_seed,
            tolerance=tolerance,
            ignore=ignore,
            say=lines.say,
            show=lines.show,
        )
    finally:
        lines.clear()
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), allow_nan=False))
    else:
        _print_outcome(outcome, kills)
    return 0 if outcome.is_passed else 1


class _Lines:
    """What is done goes to standard error as lines; what goes on, on a terminal, below them."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()
        self._has_live_line = False

    def say(self, line: str) -> None:
        self.clear()
        click.echo(printable(line), err=True)

    def show(self, line: str) -> None:
        if self._is_live:
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
            self._has_live_line = True

    def clear(self) -> None:
        if self._has_live_line:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._has_live_line = False


def _print_outcome(outcome: ResumeCheck, kills: int) -> None:
    if outcome.resumed is None:
        _print_failure("it fails without being killed", outcome.uninterrupted)
    elif outcome.resumed.error is not None or outcome.resumed.status != "success":
        _print_failure("it fails when it is resumed", outcome.resumed)
    elif outcome.differences:
        _print_differences(outcome)
    else:
        times = "once" if outcome.kills == 1 else f"{outcome.kills} times"
        left = kills - outcome.kills
        ended = f" (it ended before the other {left})" if left else ""
        click.echo(
            f"{click.style('same', fg='green', bold=True)}: killed {times}{ended} and resumed, it "
            f"came to the same {outcome.compared} metrics and results"
        )


def _print_failure(what: str, result: RunResult) -> None:
    from ml_experiments.cli.run_report import print_report

    click.echo(f"{click.style('failed', fg='red', bold=True)}: {what}")
    print_report(result)


def _print_differences(outcome: ResumeCheck) -> None:
    first, *others = (printable(str(difference)) for difference in outcome.differences)
    click.echo(
        f"{click.style('different', fg='red', bold=True)}: {first} (uninterrupted and resumed)"
    )
    for one in others[: _MAX_DIFFERENCES - 1]:
        click.echo(f"           {one}")
    if len(outcome.differences) > _MAX_DIFFERENCES:
        click.echo(f"           and {len(outcome.differences) - _MAX_DIFFERENCES} more")
    click.echo(f"{len(outcome.differences)} of {outcome.compared} metrics and results differ")
    if outcome.is_deterministic:
        hint = (
            "two uninterrupted runs are the same, so a part of the state is not in the checkpoint: "
            "an optimizer, a schedule, a position in the data, a random generator of your own; "
            "or load() is called before everything is built"
        )
    else:
        hint = (
            "two uninterrupted runs differ, too: the experiment doesn't come to the same with one "
            "seed; leave out what is measured with --ignore NAME, or allow for it with --tolerance"
        )
    click.echo(f"{click.style('hint', bold=True)}       {hint}")
