"""`ml-experiments runs compare|diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runs.conftest import Command
from tests.support.run_folders import write_run

FIRST, SECOND = (f"20260101-000000-000000{number}" for number in (1, 2))


@pytest.fixture(autouse=True)
def runs(runs_dir: Path) -> Path:
    for number, run_id in ((1, FIRST), (2, SECOND)):
        config = {"lr": number, "steps": 3}
        write_run(runs_dir, run_id, config=config, results={"loss": 1 / number})
    return runs_dir


def test_compare_prints_a_column_for_each_run(command: Command) -> None:
    assert command("compare", FIRST, "last").out.splitlines() == [
        f"              {FIRST}  {SECOND}",
        "status        success                  success",
        "seconds       1.5                      1.5",
        "config.lr     1                        2",
        "results.loss  1                        0.5",
        "1 value of the config is the same: --all",
    ]
    assert "config.steps" in command("compare", FIRST, SECOND, "--all").out
    data = json.loads(command("compare", FIRST, SECOND, "--json").out)
    assert data["values"]["config.lr"] == [1, 2]
    assert command("compare", FIRST, SECOND, "--csv").out.startswith(f",{FIRST},{SECOND}\nstatus,")


def test_diff_says_what_explains_the_difference(command: Command) -> None:
    printed = command("diff", FIRST, SECOND).out
    assert printed.splitlines()[1].split() == ["config.lr", "1", "2", "yes"]
    assert printed.endswith("\nconfig.lr can explain the difference\n")
    data = json.loads(command("diff", FIRST, SECOND, "--json").out)
    assert data["explanation"] == "config.lr can explain the difference"
    same = command("diff", FIRST, SECOND, "--tolerance", "0.6")
    assert same.out.endswith("\nthe results are the same\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare",),
        ("compare", FIRST),
        ("compare", FIRST, "nothing"),
        ("diff", FIRST),
        ("diff", FIRST, "nothing"),
        ("diff", FIRST, SECOND, "--tolerance", "-1"),
        ("compare", FIRST, SECOND, "--json", "--csv"),
    ],
)
def test_mistakes_are_errors(command: Command, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")


def test_in_a_narrow_terminal_runs_have_numbers_for_headings(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.cli.table.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    lines = command("compare", FIRST, SECOND).out.splitlines()
    assert lines[:4] == [f"1  {FIRST}", f"2  {SECOND}", "", "              1        2"]
    monkeypatch.setenv("COLUMNS", "80")
    assert FIRST in command("compare", FIRST, SECOND).out.splitlines()[0]
