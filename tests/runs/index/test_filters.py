"""Filters of runs, their order, and the columns that a list shows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.errors import ConfigError
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry
from tests.support.run_folders import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    given: list[dict[str, Any]] = [
        {"name": "Base-1", "tags": {"team": "vision"}, "results": {"acc": 0.5}, "gpu": "a10g"},
        {"name": "base-2", "backend": "modal", "gpu": "H100:2", "results": {"acc": 0.9}},
        {"experiment": "pkg.eval:Eval", "tags": {"sweep": "lr", "team": "audio"}, "cost_usd": 2.0},
        {"status": "error", "experiment": "Eval", "results": {"acc": "n/a"}, "cost_usd": 0.5},
    ]
    for number, fields in enumerate(given):
        write_run(folder, f"2026010{number + 1}-120000-0000000", **fields)
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [4, 3, 2, 1]),
        ({"status": ("error",)}, [4]),
        ({"status": ("error", "success")}, [4, 3, 2, 1]),
        ({"experiment": "Eval"}, [4, 3]),
        ({"experiment": "train.T*"}, [2, 1]),
        ({"name": "base-*"}, [2, 1]),
        ({"name": "base"}, []),
        ({"tags": {"team": "vision"}}, [1]),
        ({"tags": {"team": "*"}}, [3, 1]),
        ({"tags": {"team": "*", "sweep": "lr"}}, [3]),
        ({"gpu": "h100*"}, [2]),
        ({"backend": "modal"}, [2]),
        ({"sweep": "l*"}, [3]),
        ({"since": "2026-01-03T00:00:00+00:00"}, [4, 3]),
        ({"since": "2026-01-02T00:00Z", "until": "2026-01-04T00:00Z"}, [3, 2]),
        ({"until": "2w"}, [4, 3, 2, 1]),
        ({"since": "2w"}, []),
        ({"name": "base-*", "where": "results.acc > 0.6"}, [2]),
    ],
)
def test_a_filter_selects_runs(runs: Path, given: dict[str, Any], expected: list[int]) -> None:
    registry = RunRegistry(runs)
    rows = registry.rows(run_filter=RunFilter(**given))
    assert [int(row.run_id[7]) for row in rows] == expected
    assert registry.count(RunFilter(**given)) == len(expected)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (None, [4, 3, 2, 1]),
        ("run_id", [1, 2, 3, 4]),
        ("-cost_usd", [3, 4, 2, 1]),
        ("cost_usd", [4, 3, 2, 1]),
        ("results.acc", [1, 2, 4, 3]),
        ("-results.acc", [4, 2, 1, 3]),
        ("experiment", [4, 3, 2, 1]),
    ],
)
@pytest.mark.parametrize("limit", [None, 3, 1])
def test_runs_are_sorted_by_any_column_or_value(
    runs: Path, sort: str | None, expected: list[int], limit: int | None
) -> None:
    rows = RunRegistry(runs).rows(limit, sort=sort)
    assert [int(row.run_id[7]) for row in rows] == expected[:limit]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run_filter": RunFilter(status=("eror",))}, "did you mean 'error'"),
        ({"run_filter": RunFilter(since="yesterday")}, "2026-11-25"),
        ({"run_filter": RunFilter(until="2026-13-01")}, "is not a date"),
        ({"run_filter": RunFilter(since="99999999999w")}, "is not a date"),
        ({"run_filter": RunFilter(since="1h", until="2d")}, "the second is earlier"),
        ({"sort": "acc"}, "did you mean 'results.acc'"),
        ({"sort": "run"}, "did you mean 'run_id'"),
        ({"sort": "--cost_usd"}, "no run has '-cost_usd'"),
        ({"columns": ("run_id", "result.acc")}, "did you mean 'results.acc'"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(
    runs: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunRegistry(runs).rows(**given)


def test_a_date_without_a_zone_is_local(runs: Path, tmp_path: Path) -> None:
    noon = datetime.datetime(2026, 1, 3).astimezone()
    expected = RunRegistry(runs).rows(run_filter=RunFilter(since=noon.isoformat()))
    assert RunRegistry(runs).rows(run_filter=RunFilter(since="2026-01-03")) == expected
