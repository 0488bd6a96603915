"""`ml-experiments runs list`: filters, order, columns, forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.runs.conftest import Command
from tests.support.run_folders import write_run


@pytest.fixture(autouse=True)
def runs(runs_dir: Path) -> Path:
    for number in (1, 2, 3):
        write_run(
            runs_dir,
            f"20260101-000000-000000{number}",
            config={"lr": 10.0**-number, "flag": number == 1},
            results={"acc": number / 10} if number != 2 else {"note": "a, b\nc \x1b[31m"},
            tags={"team": "vision"} if number == 3 else {},
            cost_usd=0.5,
        )
    return runs_dir


def test_a_table_shows_the_columns_that_are_asked_for(command: Command) -> None:
    done = command(
        *("list", "--columns", "run_id,config.lr,results.acc,config.flag"),
        *("--sort", "-results.acc"),
    )
    assert done.out.splitlines() == [
        "run_id                   config.lr  results.acc  config.flag",
        "20260101-000000-0000003      0.001          0.3        false",
        "20260101-000000-0000001        0.1          0.1         true",
        "20260101-000000-0000002       0.01                     false",
    ]


def test_filters_come_together_and_say_how_many_more_there_are(command: Command) -> None:
    done = command("list", "--where", "config.lr < 0.05", "--limit", "1", "--backend", "local")
    assert done.out.splitlines()[1].startswith("20260101-000000-0000003  success")
    assert done.out.splitlines()[2] == "1 older ones: --limit 0"
    tagged = command("list", "--tag", "team=vision", "--status", "success", "--json")
    assert [row["run_id"] for row in json.loads(tagged.out)] == ["20260101-000000-0000003"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--experiment", "trian"), "no run has the experiment 'trian' (did you mean 'Train'?)"),
        (("--backend", "locl"), "no run has the backend 'locl' (did you mean 'local'?)"),
        (("--gpu", "h1000"), "no run has the GPU 'h1000'"),
        (("--tag", "teem=vision"), "no run has the tag teem=vision (did you mean 'team'?)"),
        (("--tag", "team=x", "--backend", "local"), "no run has the tag team=x"),
    ],
)
def test_a_filter_that_no_run_fits_is_named(
    command: Command, arguments: tuple[str, ...], why: str
) -> None:
    assert command("list", *arguments).out.endswith(f" match: {why}\n")


def test_filters_that_exclude_each_other_match_nothing(command: Command) -> None:
    assert command("list", "--tag", "team=vision", "--until", "2025-01-01").out.endswith("match\n")


def test_json_and_csv_have_everything_or_what_is_asked_for(command: Command) -> None:
    rows = json.loads(command("list", "--json").out)
    values = {"config.lr": 0.001, "config.flag": False, "results.acc": 0.3, "tags.team": "vision"}
    assert rows[0]["values"] == values
    assert rows[0]["cost_usd"] == 0.5
    chosen = command("list", "--json", "--columns", "config.lr,status").out
    assert json.loads(chosen)[0] == {"config.lr": 0.001, "status": "success"}
    printed = command("list", "--csv").out
    table = list(csv.DictReader(printed.splitlines(keepends=True)))
    assert [row["results.acc"] for row in table] == ["0.3", "", "0.1"]
    assert table[1]["results.note"] == "a, b\nc \x1b[31m"
    chosen = command("list", "--csv", "--columns", " run_id , results.note ").out
    assert chosen.splitlines()[0] == "run_id,results.note"


def test_what_a_run_says_cannot_act_on_the_terminal(command: Command) -> None:
    out = command("list", "--columns", "results.note").out
    assert "\\x1b[31m" in out
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "config.lrr < 3"), "did you mean 'config.lr'"),
        (("--columns", "acc"), "did you mean 'results.acc'"),
        (("--sort", "-acc"), "did you mean 'results.acc'"),
        (("--status", "sucess"), "did you mean 'success'"),
        (("--since", "soon"), "is not a date"),
        (("--tag", "team"), "write key=value"),
        (("--json", "--csv"), "exclude each other"),
        (("--limit", "-1"), "--limit"),
    ],
)
def test_a_mistake_says_what_was_meant(
    command: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = command("list", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
