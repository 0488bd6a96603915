"""Runs beside each other."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.runs.reports.compare import compare_runs
from tests.support.run_folders import write_run


def test_a_comparison_has_what_differs_and_the_results(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path,
            f"20260101-000000-000000{number}",
            config={"lr": number, "steps": 5, "optim": {"name": "adam"}},
            results={"loss": 1 / number} | ({"extra": 1} if number == 3 else {}),
            seed=number % 2,
        )
        for number in (1, 2, 3)
    ]
    comparison = compare_runs(folders)
    assert dict(comparison.rows) == {
        "status": ("success",) * 3,
        "seconds": (1.5,) * 3,
        "seed": (1, 0, 1),
        "config.lr": (1, 2, 3),
        "results.extra": (None, None, 1),
        "results.loss": (1.0, 0.5, 1 / 3),
    }
    assert comparison.same == 2
    whole = dict(compare_runs(folders, shows_all=True).rows)
    assert whole["config.optim.name"] == ("adam",) * 3


def test_a_run_that_cannot_be_read_is_compared_as_such(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, f"20260101-000000-000000{n}") for n in (1, 2)]
    (folders[1].path / "spec.json").write_text("{")
    problems = dict(compare_runs(folders).rows)["problem"]
    assert problems[0] is None
    assert "spec.json" in str(problems[1])
