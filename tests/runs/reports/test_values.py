"""Results and metrics of two runs, compared within a tolerance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.reports.diff import diff_runs
from ml_experiments.runs.reports.values import MISSING, compare_metrics, compare_results, shown
from ml_experiments.runs.result import RunResult
from tests.support.run_folders import write_run


def result(runs: Path, number: int, results: Any) -> RunResult:
    return write_run(runs, f"20260101-000000-000000{number}", results=results).outcome()


def names(
    tmp_path: Path,
    first: Any,
    second: Any,
    tolerance: float = 1e-6,
    ignore: tuple[str, ...] = (),
) -> list[str]:
    results = result(tmp_path, 1, first), result(tmp_path, 2, second)
    _, found = compare_results(*results, tolerance, ignore)
    return [difference.name for difference in found]


def test_a_name_that_is_ignored_stands_for_all_that_is_in_it(tmp_path: Path) -> None:
    first, second = ({"images": [{"s": n}], "imagesets": n, "n": {"s": n}} for n in (1, 2))
    assert names(tmp_path, first, second, ignore=("images", "n.s")) == ["results.imagesets"]


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
        (
            {"a": {"$type": "bytes", "base64": "AP8="}},
            {"a": {"$type": "bytes", "base64": "AP8="}},
            [],
        ),
    ],
)
def test_results_are_compared(tmp_path: Path, first: Any, second: Any, expected: list[str]) -> None:
    assert names(tmp_path, first, second) == expected


def test_a_value_that_json_has_no_type_for_is_shown_without_its_type() -> None:
    assert shown({"$type": "float", "value": "nan"}) == "nan"


@pytest.mark.parametrize(
    ("first", "second", "ignore", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-15}, (), ["results.a"]),
        ({"a": {"s": 1, "t": 2}}, {"a": {"s": 2, "t": 2}}, ("a",), []),
        ({"a": {"s": 1}}, {"a": {"s": 2}}, ("a.s",), []),
        ({"a": {"s": 1}}, {"a": {"s": 2}}, ("s",), ["results.a.s"]),
        (0.5, 0.6, (), ["results"]),
    ],
)
def test_without_a_tolerance_all_digits_count_and_names_can_be_left_out(
    tmp_path: Path, first: Any, second: Any, ignore: tuple[str, ...], expected: list[str]
) -> None:
    assert names(tmp_path, first, second, 0.0, ignore) == expected


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
    assert (compare_results(found[0], found[1], 1e-6) == (1, [])) is is_same


def test_a_file_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    descriptor = {"a": {"$type": "bytes", "path": "artifacts/a.bin", "size_bytes": 1}}
    assert names(tmp_path, descriptor, descriptor) == ["results.a"]


def logged(runs: Path, number: int, entries: list[tuple[int | None, dict[str, Any]]]) -> RunFolder:
    folder = write_run(runs, f"20260101-000000-000000{number}")
    lines = [json.dumps({"step": step, "metrics": metrics}) for step, metrics in entries]
    folder.metrics_file.write_text("\n".join([*lines, ""]))
    return folder


def test_the_last_value_of_a_step_counts_and_the_earliest_step_comes_first(tmp_path: Path) -> None:
    entries = [(0, {"loss": 1.0}), (1, {"loss": 0.5, "lr": 1}), (None, {"end": 1})]
    twice = [(0, {"loss": 1.0}), (1, {"loss": 9.0}), (1, {"loss": 0.5, "lr": 2})]
    first = logged(tmp_path, 1, entries).outcome()
    second = logged(tmp_path, 2, [*twice, (2, {"loss": 0.25})]).outcome()
    compared, found = compare_metrics(first, second, 0.0)
    assert compared == 5
    assert [dataclasses.astuple(one) for one in found] == [
        ("lr", 1, 1, 2),
        ("loss", 2, MISSING, 0.25),
        ("end", None, 1, MISSING),
    ]
    assert str(found[0]) == "lr at step 1: 1 and 2"


def test_the_first_step_at_which_a_metric_differs_is_named(tmp_path: Path) -> None:
    losses = ((1, [1.0, 0.5, 0.2]), (2, [1.0, 0.6, 0.3]))
    folders = [
        logged(tmp_path, number, [(step, {"loss": x, "same": 1}) for step, x in enumerate(values)])
        for number, values in losses
    ]
    with folders[1].metrics_file.open("a") as file:
        file.write(json.dumps({"step": None, "metrics": {"more": 1}}) + "\n")
    found = diff_runs(*folders, tolerance=1e-6)
    assert [(d.path, d.first, d.second) for d in found.outcomes] == [
        ("metrics.loss at step 1", "0.5", "0.6"),
        ("metrics.more", "(none)", "1"),
    ]
