"""`ml-experiments recommend`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import click

from ml_experiments.cli.parameters import JSON, Duration
from ml_experiments.cli.run import RunCommand

if TYPE_CHECKING:
    from ml_experiments.runner.bench.history import History
    from ml_experiments.runner.bench.recommending import Prediction, Recommendation


@click.command(cls=RunCommand)
@click.argument("class_path")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--per", help="What one run puts out, such as results.num_images: see bench.")
@click.option("--outputs", type=float, help="For how many; by default as many as a run has had.")
@click.option("--deadline", type=Duration(), help="They must be there in this time, as 30m or 2h.")
@click.option("--budget", type=float, help="US dollars that they may cost.")
@JSON
def recommend(
    class_path: str,
    overrides: tuple[str, ...],
    per: str | None,
    outputs: float | None,
    deadline: float | None,
    budget: float | None,
    as_json: bool,
) -> int:
    """Rank GPU types by what an output costs, as earlier runs on Modal tell.

    Runs whose config has KEY=VALUE count. Nothing is started: what has no data is measured with
    `bench`. A GPU type whose memory is too small, as the peak of another one tells, is ruled out.
    The last prediction is compared with the runs that came after it.

    Exit codes: 0 there is a recommendation, 1 there is none, 2 bad usage.
    """
    from ml_experiments.config.loading import load_config
    from ml_experiments.runner.bench.history import read_history
    from ml_experiments.runner.bench.recommending import recommend, score_predictions
    from ml_experiments.runner.prepare import locate_experiment
    from ml_experiments.settings import runs_dir

    for name, number in (("--outputs", outputs), ("--budget", budget)):
        if number is not None and not 0 < number < math.inf:
            raise click.UsageError(f"{name} {number:g} is not a number above 0")
    place, config = runs_dir(), load_config(None, overrides)
    experiment, _ = locate_experiment(class_path)
    history = read_history(place, experiment, config, per)
    found = recommend(history, outputs=outputs, deadline_s=deadline, budget_usd=budget)
    asked = {"experiment": experiment, "config": dict(config), "per": per}
    found = score_predictions(found, history, place, asked)
    if as_json:
        click.echo(json.dumps(_record(found, history, asked, deadline, budget)))
    else:
        if not history.runs and not history.setups:
            click.echo(f"there is no run of {experiment} in {place}{history.nearest}")
        _print(found, history, class_path, overrides, per)
    return 0 if found.ranking else 1


def _record(
    found: Recommendation,
    history: History,
    asked: dict[str, Any],
    deadline_s: float | None,
    budget_usd: float | None,
) -> dict[str, Any]:
    record = dataclasses.asdict(found)
    for score, values in zip(found.scores, record["scores"], strict=True):
        values["error"] = score.error
    return {
        **asked,
        "deadline_s": deadline_s,
        "budget_usd": budget_usd,
        **record,
        "mixed": list(history.mixed),
        "uncounted": history.uncounted,
    }


def _print(
    found: Recommendation,
    history: History,
    class_path: str,
    overrides: tuple[str, ...],
    per: str | None,
) -> None:
    from ml_experiments.runner.display.printable import printable

    if history.uncounted is not None:
        click.echo(printable(f"runs that can't be counted are left out: {history.uncounted}"))
    if history.mixed:
        click.echo(printable(f"runs that differ in {', '.join(history.mixed)} count together"))
    _print_rows(found, per)
    for gpu, why in found.ruled_out.items():
        click.echo(f"too small: {gpu}: {why}")
    if found.without_data:
        gpus = ",".join(found.without_data)
        arguments = " ".join([class_path, *overrides, *([f"--per {per}"] if per else [])])
        click.echo(f"no data: {gpus.replace(',', ', ')}")
        click.echo(printable(f"measure with: ml-experiments bench {arguments} --gpu {gpus}"))
    if found.scores:
        click.echo(f"the prediction of {found.last_prediction} against the runs since:")
    for score in found.scores:
        runs = f"{score.runs} run{'s' * (score.runs > 1)}"
        click.echo(
            f"  {_label(score.gpu, score.overrides)}: {score.predicted_s:.3g} s each, came "
            f"{score.actual_s:.3g} s in {runs} ({score.error:+.0%})"
        )
    if found.last_prediction is None and (found.ranking or found.outside):
        click.echo("not scored yet: no run has come since a prediction")
    _print_choice(found)


def _print_rows(found: Recommendation, per: str | None) -> None:
    from ml_experiments.cli.bench.report import short_dollars
    from ml_experiments.cli.table import Cell, Column, print_table

    rows = (*found.ranking, *found.outside)
    if not rows:
        return
    what = per.rpartition(".")[2] if per else "run" if found.outputs == 1 else "runs"
    click.echo(f"for {found.outputs:,g} {what}, with one set-up:")
    names = list(dict.fromkeys(o.partition("=")[0] for row in rows for o in row.overrides))
    scale = 1 if max(row.usd_each for row in rows) >= 0.001 else 1000
    numbers = (f"$ {'each' if scale == 1 else 'per 1000'}", "time", "cost", "runs")
    columns = [Column("", is_right=True), Column("GPU type")]
    columns += [Column(name, is_cut=True) for name in names]
    columns += [*(Column(number, is_right=True) for number in numbers), Column("")]
    lines: list[list[str | Cell]] = []
    for number, row in enumerate(rows, 1):
        values = dict(override.partition("=")[::2] for override in row.overrides)
        lines.append(
            [
                str(number) if row.problem is None else "",
                row.gpu,
                *(values.get(name, "") for name in names),
                f"{scale * row.usd_each:.3g}",
                f"{row.seconds[1]:,.3g} s" if row.seconds[1] < 600 else _long(row.seconds[1]),
                f"${short_dollars(row.usd[1])}",
                str(row.runs),
                Cell(row.problem, "yellow") if row.problem else "",
            ]
        )
    print_table(columns, lines)


def _long(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print_choice(found: Recommendation) -> None:
    if found.ranking:
        cheapest, fastest = found.ranking[0], found.fastest
        click.echo(f"cheapest: {_label(cheapest.gpu, cheapest.overrides)}{_caution(cheapest)}")
        if fastest is not None and fastest != cheapest:
            click.echo(f"fastest: {_label(fastest.gpu, fastest.overrides)}{_caution(fastest)}")
    elif found.outside:
        click.echo("no GPU type that was measured is within the deadline and the budget")
    else:
        click.echo("there is no data to recommend from")


def _caution(prediction: Prediction) -> str:
    return " (from 1 run only)" if prediction.runs == 1 else ""


def _label(gpu: str, overrides: tuple[str, ...]) -> str:
    from ml_experiments.runner.display.printable import printable

    return printable(" ".join((gpu, *overrides)))
