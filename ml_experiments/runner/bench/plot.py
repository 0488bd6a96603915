"""Draws what a bench has measured: the cost of an output against speed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_experiments.errors import ConfigError, PreflightError, suggest
from ml_experiments.runner.bench.measuring import BenchRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
_LOG_ABOVE = 8  # the largest value over the smallest, from which on a log scale shows more
_MIN_USD = 0.001  # costs below are shown for a thousand outputs
_MARKERS = "osD^vP*X<>"


def check_plot(file: Path) -> None:
    """Find what would keep a plot from being written, before anything is measured.

    Raises:
        PreflightError: If matplotlib is not installed.
        ConfigError: If the file can't be one.
    """
    ending = file.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise ConfigError(
            f"{file}: a plot is written as {', '.join(FORMATS)}{suggest(ending, FORMATS)}; write "
            f"{file.with_suffix('.png')}"
        )
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(f"{file} can't be written: there is no folder {file.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PreflightError(
            "a plot needs matplotlib, which is not installed here; install it with: "
            "pip install 'ml_experiments[plot]'"
        )


def draw_plot(rows: Sequence[BenchRow], per: str | None, file: Path) -> None:
    """Draw rows: to the right is faster, lower is cheaper; a line joins the efficient ones.

    Raises:
        PreflightError: If matplotlib is not installed.
        ConfigError: If there is nothing to draw, or the file can't be written.
    """
    check_plot(file)
    drawn = [row for row in rows if row.usd_per_output and row.outputs_per_s]
    if not drawn:
        raise ConfigError(
            "there is nothing to plot: no row has both a cost and a speed; runs on this machine "
            "cost nothing"
        )
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    scale, unit = cost_unit(drawn)
    what = (per or "run").rpartition(".")[2]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    _draw_frontier(axes, drawn, scale)
    _draw_rows(axes, drawn, scale)
    speeds = [row.outputs_per_s or 0.0 for row in drawn]
    costs = [scale * (row.usd_per_output or 0.0) for row in drawn]
    for axis, values, set_scale in (
        (axes.xaxis, speeds, axes.set_xscale),
        (axes.yaxis, costs, axes.set_yscale),
    ):
        if max(values) > _LOG_ABOVE * min(values):
            set_scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(visible=True, alpha=0.25)
    axes.margins(0.14)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{what} per second" if per else "runs per second")
    axes.set_ylabel(f"US dollars {unit} ({what})")
    try:
        figure.savefig(file, dpi=150)
    except OSError as e:
        raise ConfigError(f"{file} can't be written: {e.strerror}") from e


def cost_unit(rows: Sequence[BenchRow]) -> tuple[int, str]:
    """Return for how many outputs costs are shown, so that they are readable, and its name."""
    dearest = max((row.usd_per_output or 0.0 for row in rows), default=0.0)
    return (1, "each") if dearest >= _MIN_USD or not dearest else (1000, "per 1000")


def _draw_frontier(axes: Axes, rows: Sequence[BenchRow], scale: int) -> None:
    efficient = sorted(
        (row.outputs_per_s or 0.0, scale * (row.usd_per_output or 0.0))
        for row in rows
        if row.is_efficient
    )
    axes.plot(
        *zip(*efficient, strict=True),
        color="0.6",
        linewidth=1.2,
        zorder=1,
        label="efficient frontier",
    )


def _draw_rows(axes: Axes, rows: Sequence[BenchRow], scale: int) -> None:
    gpus = list(dict.fromkeys(row.gpu or "this machine" for row in rows))
    has_values = any(row.overrides for row in rows)
    for number, gpu in enumerate(gpus):
        own = [row for row in rows if (row.gpu or "this machine") == gpu]
        axes.plot(
            [row.outputs_per_s or math.nan for row in own],
            [scale * (row.usd_per_output or math.nan) for row in own],
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            color=f"C{number % 10}",
            label=gpu,
        )
        for row in own:
            values = [override.partition("=")[2] for override in row.overrides]
            axes.annotate(
                ", ".join(values) if has_values else gpu,
                (row.outputs_per_s or math.nan, scale * (row.usd_per_output or math.nan)),
                textcoords="offset points",
                xytext=(0, 7),
                ha="center",
                fontsize="small",
            )
    names = [override.partition("=")[0] for override in rows[0].overrides]
    axes.legend(title=f"labels: {', '.join(names)}" if has_values else None, fontsize="small")
