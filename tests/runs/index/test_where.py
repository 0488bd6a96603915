"""Conditions on runs: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_experiments.errors import ConfigError
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry
from tests.support.run_folders import write_run

RUNS = {
    "20260101-000000-0000001": {"config": {"lr": 1e-2, "optim": {"name": "adam"}, "class": 3}},
    "20260101-000000-0000002": {"config": {"lr": 1e-4, "optim": {"name": "sgd"}, "flag": True}},
    "20260101-000000-0000003": {"config": {"lr": "auto", "sizes": [1, 2]}, "results": {"acc": 0.9}},
    "20260101-000000-0000004": {"results": {"acc": {"$type": "float", "value": "nan"}}},
    "20260101-000000-0000005": {"results": {"acc": {"$type": "float", "value": "inf"}}},
    "20260101-000000-0000006": {"results": 7, "status": "error", "name": "déjà vu"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("where")
    for run_id, given in RUNS.items():
        write_run(folder, run_id, **given)  # type: ignore[arg-type]
    return folder


def matching(runs: Path, where: str) -> list[int]:
    rows = RunRegistry(runs).rows(run_filter=RunFilter(where=where))
    return sorted(int(row.run_id[-1]) for row in rows)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("config.lr < 1e-3", [2]),
        ("config.lr >= 1e-4", [1, 2]),
        ("1e-3 > config.lr", [2]),
        ("1e-5 < config.lr < 1e-3", [2]),
        ("config.lr == 'auto'", [3]),
        ("config.lr < 'b'", [3]),
        ("config.lr != 'auto'", [1, 2]),
        ("not config.lr < 1e-3", [1, 3, 4, 5, 6]),
        ("not (config.lr < 1e-3 or config.lr > 1e-3)", [3, 4, 5, 6]),
        ("config.lr == none", [4, 5, 6]),
        ("config.lr is not None", [1, 2, 3]),
        ("config.flag == true", [2]),
        ("config.optim.name in ('adam', 'x')", [1]),
        ("config.optim.name not in ('adam',)", [2, 3, 4, 5, 6]),
        ("'da' in config.optim.name", [1]),
        ("'éjà' in name", [6]),
        ("config['class'] == 3", [1]),
        ("config.sizes == '[1, 2]'", [3]),
        ("results.acc == nan", [4]),
        ("results.acc == inf", [5]),
        ("results.acc > 0.5", [3, 5]),
        ("results.acc > -inf", [3, 5]),
        ("results > 5", [6]),
        ("status == 'error' and results > 5", [6]),
        ("status != 'error' and seconds >= 0 and config.lr > 1e-3", [1]),
        ("name == none", [1, 2, 3, 4, 5]),
        ("run_id > '20260101-000000-0000004'", [5, 6]),
        ("  config.lr\n< 1e-3 ", [2]),
        ("config.lr > 99999999999999999999999", []),
        ('config.lr == "\'; DROP TABLE runs; --"', []),
        ("status in ()", []),
    ],
)
def test_a_condition_selects_runs(runs: Path, where: str, expected: list[int]) -> None:
    assert matching(runs, where) == expected


@pytest.mark.parametrize(
    ("where", "message", "marked"),
    [
        ("config.lrr < 3", "did you mean 'config.lr'?", "config.lrr"),
        ("lr < 3", "did you mean 'config.lr'?", "lr"),
        ("nmae == 'x'", "did you mean 'name'?", "nmae"),
        ("date > '2026'", "did you mean 'created_at'?", "date"),
        ("config.optim == 'adam'", "there is config.optim.name", "config.optim"),
        ("config.lr = 3", "write ==", "="),
        ("status = error", "= compares nothing; write ==", "="),
        (
            "(config.lr < 1) & (config.lr > 0)",
            "write and, or, not",
            "(config.lr < 1) & (config.lr > 0)",
        ),
        ("config.class < 3", 'write config["class"]', "class"),
        ("config.lr <", "a value is missing at the end", ""),
        ("config.lr < 1 && status == 'error'", "write and, or, not", "&&"),
        ("config.lr < 3 and status = error", "write ==", "="),
        ("config.lr >= 3 or status = 'error'", "write ==", "="),
        ("name == 'a = b' and", "a value is missing at the end", ""),
        ("config.lr < 3 AND status == 'error'", "write and, or, not", "AND"),
        ("status like 'err%'", 'write "part" in name', "like"),
        ("config.lr between 0 and 1", "write 0.1 < config.lr < 0.3", "between"),
        ("status == success", 'a string stands in quotes: "success"', "success"),
        ("config.lr", "is compared with nothing", "config.lr"),
        ("(config.lr < 3", "--where: '(' was never closed", "("),
        ("config.lr < 'a", "unterminated string", "'a"),
        ("config.lr < none", "can't be ordered", "none"),
        ("config.lr < (1, 2)", "is no number and no string", "(1, 2)"),
        ("__import__('os').system('x') > 3", "a value on both sides", "__import__('os')"),
        ("config.lr.__class__ < 3", "a value that no run has", "config.lr.__class__"),
        ("1 in config.lr", "is no string", "1"),
        ("config.lr + 1 < 3", "a value on both sides", "config.lr + 1"),
        ("lambda: 3", "is no comparison", "lambda: 3"),
        ("'déjà' in name and confg.lr < 3", "did you mean 'config.lr'?", "confg.lr"),
    ],
)
def test_a_mistake_is_marked_with_a_caret_and_explained(
    runs: Path, where: str, message: str, marked: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        matching(runs, where)
    problem, line, carets = str(caught.value).splitlines()
    assert message in problem
    assert line.strip() == where
    start = carets.index("^")
    assert line[start : start + carets.count("^")].startswith(marked)


@pytest.mark.parametrize(
    "where", ["", " ", "x" * 20_000, "not " * 2000 + "status == 'x'", "(" * 500, "\0", "a\\"]
)
def test_nonsense_is_an_error_too(runs: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        matching(runs, where)


def test_where_nothing_has_run_a_condition_is_no_mistake(tmp_path: Path) -> None:
    assert RunRegistry(tmp_path).rows(run_filter=RunFilter(where="config.lr < 3")) == []


def test_a_result_with_very_many_values_is_cut_not_refused(tmp_path: Path) -> None:
    results = {f"value{n}": n for n in range(5000)} | {"long": "x" * 5000}
    write_run(tmp_path, "20260101-000000-0000001", config={"text": "y" * 5000}, results=results)
    registry = RunRegistry(tmp_path)
    (row,) = registry.rows(run_filter=RunFilter(where="results.value900 == 900"))
    assert len(json.dumps(row.to_dict())) < 30_000
    assert row.get("config.text") == "y" * 1000
