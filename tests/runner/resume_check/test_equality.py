"""What two runs that should have come to the same differ in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import run_experiment
from ml_experiments.runner.resume_check.equality import metric_differences, result_differences
from ml_experiments.runs.folder import RunFolder


def folder_with(path: Path, entries: list[tuple[int | None, dict[str, Any]]], results: Any) -> Any:
    path.mkdir()
    lines = [json.dumps({"step": step, "metrics": metrics}) for step, metrics in entries]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    result = {"run_id": "r", "status": "success", "experiment_class": "m:C", "results": results}
    (path / "result.json").write_text(json.dumps(result))
    return RunFolder(path)


def test_the_last_value_of_a_step_counts_and_the_earliest_step_comes_first(tmp_path: Path) -> None:
    entries = [(0, {"loss": 1.0}), (1, {"loss": 0.5, "lr": 1}), (None, {"end": 1})]
    twice = [(0, {"loss": 1.0}), (1, {"loss": 9.0}), (1, {"loss": 0.5, "lr": 2})]
    first = folder_with(tmp_path / "a", entries, None)
    second = folder_with(tmp_path / "b", [*twice, (2, {"loss": 0.25})], None)
    compared, found = metric_differences(first, second)
    assert compared == 5
    assert [dataclasses.astuple(one) for one in found] == [
        ("lr", 1, 1, 2),
        ("loss", 2, "absent", 0.25),
        ("end", None, 1, "absent"),
    ]
    assert str(found[0]) == "lr at step 1: 1 and 2"


@pytest.mark.parametrize(
    ("first", "second", "tolerance", "ignore", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 0.0, (), ["results.a"]),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 1e-6, (), []),
        ({"a": 1}, {"a": True}, 0.0, (), ["results.a"]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, 0.0, (), ["results.a[1].b"]),
        ({"a": {"s": 1, "t": 2}}, {"a": {"s": 2, "t": 2}}, 0.0, ("a",), []),
        ({"a": {"s": 1}}, {"a": {"s": 2}}, 0.0, ("a.s",), []),
        ({"a": {"s": 1}}, {"a": {"s": 2}}, 0.0, ("s",), ["results.a.s"]),
        ({"a": 1}, {"b": 1}, 0.0, (), ["results.a", "results.b"]),
        (0.5, 0.6, 0.0, (), ["results"]),
    ],
)
def test_results_are_compared_value_by_value(
    tmp_path: Path,
    first: Any,
    second: Any,
    tolerance: float,
    ignore: tuple[str, ...],
    expected: list[str],
) -> None:
    folders = folder_with(tmp_path / "a", [], first), folder_with(tmp_path / "b", [], second)
    _, found = result_differences(*folders, tolerance=tolerance, ignore=ignore)
    assert [one.name for one in found] == expected


def array(config: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"weights": np.arange(5) + config["first"]}


def test_arrays_in_files_are_compared_by_their_content() -> None:
    folders = [
        RunFolder(run_dir)
        for first in (0, 1)
        if (run_dir := run_experiment(array, {"first": first}).raise_for_error().run_dir)
    ]
    assert result_differences(folders[0], folders[0])[1] == []
    assert [one.name for one in result_differences(folders[0], folders[1])[1]] == [
        "results.weights"
    ]
