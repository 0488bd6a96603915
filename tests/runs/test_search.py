"""Old runs from Python."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import Error, find_runs, load_run, runs_dataframe
from ml_experiments.errors import ConfigError, RunNotFoundError
from tests.support.run_folders import write_run


@pytest.fixture
def runs(runs_dir: Path) -> Path:
    for number in range(1, 5):
        run_id = f"20260101-000000-000000{number}"
        given: dict[str, Any] = {"status": "error"} if number == 4 else {"tags": {"team": "a"}}
        results = {"loss": number / 10}
        folder = write_run(runs_dir, run_id, config={"lr": number}, results=results, **given)
        folder.metrics_file.write_text('{"step": 0, "metrics": {"loss": 1.0}}\n')
    return runs_dir


def losses(found: list[Any]) -> list[float]:
    return [result.results["loss"] for result in found]


def test_an_old_run_is_loaded_with_all_that_is_known_of_it(runs: Path) -> None:
    last = load_run()
    assert (last.run_id, last.status, last.run_dir) == (
        "20260101-000000-0000004",
        "error",
        runs / "20260101-000000-0000004",
    )
    assert last.metrics == ({"step": 0, "metrics": {"loss": 1.0}},)
    assert load_run("20260101-000000-0000002").results == {"loss": 0.2}
    with pytest.raises(RunNotFoundError):
        load_run("2027")
    with pytest.raises(RunNotFoundError):
        load_run(runs_dir=runs / "elsewhere")


@pytest.mark.parametrize(
    ("where", "filters", "expected"),
    [
        (None, {}, [0.4, 0.3, 0.2, 0.1]),
        ("config.lr > 2", {}, [0.4, 0.3]),
        ("config.lr > 2", {"status": "success"}, [0.3]),
        (None, {"status": ["success", "error"], "limit": 1}, [0.4]),
        (None, {"tags": {"team": "a"}, "sort": "results.loss"}, [0.1, 0.2, 0.3]),
        (None, {"limit": 0}, []),
        (None, {"since": None, "sort": "-config.lr"}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_runs_are_found_by_what_they_are(
    runs: Path, where: str | None, filters: dict[str, Any], expected: list[float]
) -> None:
    assert losses(find_runs(where, **filters)) == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"statu": "error"}, "did you mean 'status'"),
        ({"limit": -1}, "limit"),
        ({"limit": "3"}, "limit"),
        ({"tags": "a"}, "tags"),
        ({"status": "eror"}, "did you mean 'error'"),
    ],
)
def test_a_filter_that_is_none_is_an_error(
    runs: Path, filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_runs(**filters)


def test_an_unreadable_run_is_left_out_and_named(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (runs / "20260101-000000-0000002" / "spec.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert losses(find_runs()) == [0.4, 0.3, 0.1]
        assert len(runs_dataframe()) == 3
    assert "20260101-000000-0000002/spec.json" in caplog.text


def test_a_data_frame_has_a_row_for_each_run_and_a_column_for_each_value(runs: Path) -> None:
    table = runs_dataframe("results.loss <= 0.3", sort="results.loss")
    assert table["config.lr"].tolist() == [1, 2, 3]
    assert table["tags.team"].unique().tolist() == ["a"]
    assert table["created_at"].dt.year.tolist() == [2026] * 3
    assert table.loc["20260101-000000-0000002", "results.loss"] == 0.2
    assert table["seconds"].mean() == 1.5


def test_a_diverged_run_leaves_a_data_frames_column_numeric(runs: Path) -> None:
    results = {"loss": {"$type": "float", "value": "nan"}}
    write_run(runs, "20260101-000000-0000005", results=results)
    assert runs_dataframe()["results.loss"].mean() == pytest.approx(0.25)


def test_a_data_frame_of_no_runs_has_its_columns(tmp_path: Path) -> None:
    table = runs_dataframe(runs_dir=tmp_path)
    assert len(table) == 0
    assert {"status", "experiment", "created_at"} <= set(table.columns)


def test_without_pandas_a_data_frame_is_an_error_that_says_what_to_install(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Error, match=r"ml_experiments\[results\]"):
        runs_dataframe()


def test_finding_runs_imports_neither_pandas_nor_numpy(runs: Path) -> None:
    code = (
        "import sys, ml_experiments as m\n"
        "assert len(m.find_runs()) == 4\n"
        "print(sorted({'pandas', 'numpy', 'modal', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
