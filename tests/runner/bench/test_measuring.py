"""From run folders to the rows of a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.errors import Error
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.bench.folder import BenchFolder, BenchSpec
from ml_experiments.runner.bench.measuring import BenchRow, outputs_of, percentiles, read_rows
from ml_experiments.runs.result import RunResult, RunStatus
from tests.support.run_folders import write_run

BENCH = "20261125-120000-0000000"


class Recorded:
    """A bench whose runs are written without running anything."""

    def __init__(self, runs_dir: Path, **spec: Any) -> None:
        self.runs_dir, self.count = runs_dir, 0
        self.spec = BenchSpec(BENCH, "train.Train", "", backend="modal", **spec)
        self.folder = BenchFolder.create(runs_dir, self.spec, Redactor(()))

    def add(self, case: str, *, pid: int = 1, usd: float | None = 0.01, **given: Any) -> None:
        """Write a run of a case; the first one of a case warms up."""
        self.count += 1
        repeat = given.pop("repeat", "warm-up")
        folder = write_run(
            self.runs_dir,
            f"20261125-1200{self.count:02}-0000000",
            results=given.pop("results", {"images": 4}),
            status=given.pop("status", "success"),
            manifest={"process": {"hostname": "modal", "pid": pid}},
            tags={"bench": BENCH, "case": case, "repeat": repeat},
            backend="modal",
        )
        result = json.loads(folder.result_file.read_text())
        seconds = given.pop("seconds", 2.0)
        result["timings"] = {"import_s": 1.0, "setup_s": 3.0, "run_s": seconds, "total_s": seconds}
        result["cost"] = {} if usd is None else {"estimate_usd": usd}
        folder.result_file.write_text(json.dumps({**result, **given}))

    def add_case(self, case: str, *seconds: float, **given: Any) -> None:
        for number, each in enumerate(seconds):
            self.add(case, seconds=each, repeat=str(number or "warm-up"), **given)

    def rows(self) -> list[BenchRow]:
        return read_rows(self.spec, self.folder)


def test_the_first_run_warms_up_and_the_others_are_measured(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",), per="results.images")
    recorded.add_case("t4", 9.0, 2.0, 4.0, 3.0, usd=0.06)
    [row] = recorded.rows()
    assert (row.status, row.runs, row.seconds) == ("measured", 3, (2.0, 3.0, 4.0))
    assert (row.setup_s, row.first_run_s) == (4.0, 9.0)
    assert row.outputs == 4
    assert row.seconds_per_output == pytest.approx(0.75)
    assert row.seconds_per_output_spread == (0.5, 1.0)
    assert row.outputs_per_s == pytest.approx(4 / 3)
    # the price of a second, 0.06 / 3, for the 0.75 seconds of an output
    assert row.usd_per_output == pytest.approx(0.015)
    assert row.latency == {50: 3.0, 95: 4.0, 99: 4.0}
    assert row.to_dict()["latency"] == {"p50": 3.0, "p95": 4.0, "p99": 4.0}


def test_rows_are_ranked_by_cost_and_those_that_no_other_beats_are_efficient(
    runs_dir: Path,
) -> None:
    recorded = Recorded(runs_dir, gpus=("t4", "l4", "h100", "a100"))
    recorded.add_case("t4", 1, 8, usd=0.008)
    recorded.add_case("l4", 1, 4, usd=0.004)
    recorded.add_case("h100", 1, 1, usd=0.006)
    rows = recorded.rows()
    assert [row.gpu for row in rows] == ["l4", "h100", "t4", "a100"]
    assert [row.gpu for row in rows if row.is_efficient] == ["l4", "h100"]
    assert rows[-1].status == "not measured"


def test_a_run_that_was_set_up_anew_does_not_count_where_others_share_the_set_up(
    runs_dir: Path,
) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",))
    recorded.add("t4", pid=7)
    for number, (pid, seconds) in enumerate([(7, 2.0), (9, 50.0), (7, 2.2)], 1):
        recorded.add("t4", pid=pid, seconds=seconds, repeat=str(number))
    [row] = recorded.rows()
    assert row.seconds == (2.0, 2.2)
    assert row.problem == "1 of 3 runs were set up anew and don't count"


def test_runs_with_processes_of_their_own_all_count(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",))
    for pid in (1, 2, 3):
        recorded.add("t4", pid=pid, repeat=str(pid - 1 or "warm-up"))
    assert recorded.rows()[0].runs == 2


def test_memory_and_failures_are_rows(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4", "l4", "h100"))
    error = {"kind": "cuda_oom", "type": "OutOfMemoryError", "message": "CUDA out of memory"}
    recorded.add("t4", status="error", error=error)
    recorded.add("l4", status="error", error={**error, "kind": "experiment", "type": "Odd"})
    recorded.add("h100")
    peaks = {"peak_memory_bytes": 5, "peak_gpu_memory_bytes": 7, "gpu": "NVIDIA H100"}
    recorded.add("h100", repeat="1", environment=peaks)
    rows = {row.gpu: row for row in recorded.rows()}
    assert (rows["t4"].status, rows["t4"].problem) == (
        "out of memory",
        "the GPU's memory was too small",
    )
    assert (rows["l4"].status, rows["l4"].problem) == ("failed", "Odd: CUDA out of memory")
    assert (rows["h100"].peak_memory_bytes, rows["h100"].peak_memory_of) == (7, "gpu")


def test_what_was_measured_before_a_failure_counts_and_the_failure_is_named(
    runs_dir: Path,
) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",), repeat=3)
    recorded.add_case("t4", 1, 2)
    recorded.add("t4", repeat="2", status="cancelled")
    [row] = recorded.rows()
    assert (row.status, row.runs) == ("measured", 1)
    assert str(row.problem).startswith("1 of 3 runs; run 20261125-")


def test_a_case_that_was_measured_again_has_its_latest_series(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",))
    recorded.add_case("t4", 1, 2)
    recorded.add_case("t4", 1, 5, 6)
    assert recorded.rows()[0].seconds == (5, 6)


def test_runs_without_a_cost_have_a_speed_only(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir)
    recorded.add_case("here", 1, 2, usd=None)
    [row] = recorded.rows()
    assert (row.seconds_per_output, row.usd_per_output, row.is_efficient) == (2.0, None, False)


RESULT = RunResult(
    "", RunStatus.SUCCESS, "", results_json={"n": 3, "many": [1, 2], "deep": {"x": 2}}
)


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        (None, 1),
        ("results.n", 3),
        ("n", 3),
        ("many", 2),
        ("results.deep.x", 2),
        ("config.batch", 5),
    ],
)
def test_an_output_is_a_number_or_an_entry_of_a_list(per: str | None, expected: float) -> None:
    assert outputs_of(RESULT, {"batch": 5}, per) == expected


@pytest.mark.parametrize(
    ("per", "says"),
    [
        ("results.m", r"the results have no results\.m.*there are n, many, deep"),
        ("config.batches", r"did you mean 'batch'"),
        ("results.deep", "must be a number above 0, or a list to count"),
        ("results.n.x", "the results have no"),
    ],
)
def test_what_can_not_be_counted_is_named(per: str, says: str) -> None:
    with pytest.raises(Error, match=says):
        outputs_of(RESULT, {"batch": 5}, per)


def test_results_without_the_count_are_a_problem_of_the_row(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",), per="results.image")
    recorded.add_case("t4", 1, 2)
    [row] = recorded.rows()
    assert (row.runs, row.outputs, row.latency[50]) == (1, None, 2.0)
    assert "did you mean 'images'" in str(row.problem)


def test_a_metric_that_no_run_has_logged_is_a_problem_of_the_row(runs_dir: Path) -> None:
    recorded = Recorded(runs_dir, gpus=("t4",), latency="batch_s")
    recorded.add_case("t4", 1, 2)
    [row] = recorded.rows()
    assert (row.latency, row.outputs) == ({}, 1.0)
    assert row.problem == "no run has logged 'batch_s'"


@given(st.lists(st.floats(0, 100), min_size=1))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = percentiles(values)
    for percent, value in found.items():
        assert value in values
        assert sum(v <= value for v in values) * 100 >= percent * len(values)
        assert sum(v < value for v in values) * 100 < percent * len(values)
