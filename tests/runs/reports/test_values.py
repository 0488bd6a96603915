"""Results and metrics of two runs, compared within a tolerance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_experiments.runs.reports.values import compare_metrics, compare_results
from ml_experiments.runs.result import RunResult
from tests.support.run_folders import write_run


def result(runs: Path, number: int, results: Any) -> RunResult:
    return write_run(runs, f"20260101-000000-000000{number}", results=results).outcome()


def paths(tmp_path: Path, first: Any, second: Any, tolerance: float = 1e-6) -> list[str]:
    results = result(tmp_path, 1, first), result(tmp_path, 2, second)
    return [difference.path for difference in compare_results(*results, tolerance)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, []),
        ({"a": 1.0}, {"a": 1.0 + 1e-3}, ["results.a"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": True}, {"a": 1}, ["results.a"]),
        ({"a": "x"}, {"a": "y"}, ["results.a"]),
        ({"a": 1}, {"b": 1}, ["results.a", "results.b"]),
        ({"a": {"b": [1, 2.0]}}, {"a": {"b": [1, 3.0]}}, ["results.a.b[1]"]),
        ({"a": [1]}, {"a": [1, 2]}, ["results.a"]),
        (3, 3, []),
        (None, 3, ["results"]),
        ({"a": {"$type": "float", "value": "nan"}}, {"a": {"$type": "float", "value": "nan"}}, []),
    ],
)
def test_results_are_compared(tmp_path: Path, first: Any, second: Any, expected: list[str]) -> None:
    assert paths(tmp_path, first, second) == expected


@pytest.mark.parametrize(
    ("change", "is_same"),
    [(0.0, True), (1e-9, True), (1e-3, False)],
)
def test_arrays_are_compared_by_value(tmp_path: Path, change: float, is_same: bool) -> None:
    values = np.array([1.0, np.nan, np.inf])
    found = []
    for number, array in ((1, values), (2, values + np.array([change, 0, 0]))):
        descriptor = {"$type": "ndarray", "path": "artifacts/a.npy", "dtype": "float64"}
        folder = write_run(tmp_path, f"20260101-000000-000000{number}", results={"w": descriptor})
        folder.artifacts_dir.mkdir()
        np.save(folder.artifacts_dir / "a.npy", array)
        found.append(folder.outcome())
    assert (compare_results(found[0], found[1], 1e-6) == []) is is_same


def test_a_file_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    descriptor = {"a": {"$type": "bytes", "path": "artifacts/a.bin", "size_bytes": 1}}
    assert paths(tmp_path, descriptor, descriptor) == ["results.a"]


def test_the_first_step_at_which_a_metric_differs_is_named(tmp_path: Path) -> None:
    found = []
    for number, losses in ((1, [1.0, 0.5, 0.2]), (2, [1.0, 0.6, 0.3])):
        folder = write_run(tmp_path, f"20260101-000000-000000{number}")
        lines = [
            json.dumps({"step": step, "metrics": {"loss": loss, "same": 1}})
            for step, loss in enumerate(losses)
        ]
        if number == 2:
            lines.append(json.dumps({"step": None, "metrics": {"more": 1}}))
        folder.metrics_file.write_text("\n".join([*lines, ""]))
        found.append(folder.outcome())
    differences = compare_metrics(found[0], found[1], 1e-6)
    assert [(d.path, d.first, d.second) for d in differences] == [
        ("metrics.loss at step 1", "0.5", "0.6"),
        ("metrics.more", "(none)", "1"),
    ]
