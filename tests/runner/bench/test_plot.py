"""The plot of a bench."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ml_experiments.errors import ConfigError, PreflightError
from ml_experiments.runner.bench.measuring import BenchRow
from ml_experiments.runner.bench.plot import check_plot, cost_unit, draw_plot


def row(gpu: str, seconds: float, usd: float, *overrides: str, best: bool = False) -> BenchRow:
    return BenchRow(
        gpu,
        overrides,
        "measured",
        seconds_per_output=seconds,
        usd_per_output=usd,
        is_efficient=best,
    )


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_plot_is_written_in_the_format_of_its_name(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"plot.{ending}"
    draw_plot([row("t4", 1, 0.1), row("h100", 0.1, 0.09, best=True)], "results.images", file)
    begins = {"png": b"\x89PNG", "pdf": b"%PDF"}[ending]
    assert file.read_bytes().startswith(begins)


def test_it_names_gpu_types_values_axes_and_the_frontier(tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    rows = [row("t4", 1, 1e-6, "batch_size=4", best=True), row("l4", 0.01, 1e-4, "batch_size=16")]
    draw_plot([*rows, BenchRow("h100", ("batch_size=4",), "failed")], "results.images", file)
    drawn = file.read_text()
    for text in (
        *("t4", "l4", "efficient frontier", "labels: batch_size"),
        *("images per second", "US dollars per 1000 (images)"),
    ):
        assert f"<!-- {text} -->" in drawn
    assert "<!-- h100 -->" not in drawn


def test_small_costs_are_shown_for_a_thousand() -> None:
    assert cost_unit([row("t4", 1, 0.0009)]) == (1000, "per 1000")
    assert cost_unit([row("t4", 1, 0.0009), row("l4", 1, 0.01)]) == (1, "each")
    assert cost_unit([]) == (1, "each")


def test_what_would_keep_it_from_being_written_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'png'.*write plot\.png"):
        check_plot(Path("plot.pgn"))
    with pytest.raises(ConfigError, match="there is no folder"):
        check_plot(tmp_path / "missing" / "plot.png")
    with pytest.raises(ConfigError, match="there is nothing to plot"):
        draw_plot([BenchRow("t4", (), "failed")], None, tmp_path / "plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PreflightError, match=r"pip install 'ml_experiments\[plot\]'"):
        check_plot(tmp_path / "plot.png")
