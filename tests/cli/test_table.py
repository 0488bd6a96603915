"""Tables fit a terminal, are whole in a pipe, and hold nothing that a terminal obeys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from ml_experiments import run_experiment
from ml_experiments.cli import table
from ml_experiments.cli.table import Cell, Column, print_table
from ml_experiments.runner.display.observers import Display
from ml_experiments.runs.spec import RunSpec
from tests.support.cache_command import call as call_cache
from tests.support.hub_cache import commit_of, write_repo
from tests.support.terminal import on_terminal

COLUMNS = (Column("id"), Column("status"), Column("s", is_right=True), Column("name", is_cut=True))
ROWS = [("20261125", Cell("success", "green"), "1.5", "n" * 300), ("2", "error", "10.0", "短い")]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ODD = "a\x1b]0;PWNED\x07\x1b[2Jb\u202e"


def test_in_a_pipe_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "id        status      s  name",
        f"20261125  success   1.5  {'n' * 300}",
        "2         error    10.0  短い",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_on_a_terminal_the_name_is_cut_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(table, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS)
    first, second, _ = capsys.readouterr().out.splitlines()
    room = max(width - len("20261125  success   1.5  "), 8)
    assert second == f"20261125  success   1.5  {'n' * (room - 1)}…"
    assert first.split() == ["id", "status", "s", "name"]


def test_a_heading_gives_way_where_the_cells_below_it_need_less(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    columns = (Column("results.a_loss_of_the_second_stage", is_right=True), Column("status"))
    print_table(columns, [("0.123456789012", "successful_run_that_ended")])
    assert capsys.readouterr().out.splitlines() == [
        "results.a_los…  status",
        "0.123456789012  successful_run_that_ended",
    ]


def test_of_two_long_columns_the_longer_gives_way_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "52")
    columns = (Column("a", is_cut=True), Column("b", is_cut=True))
    print_table(columns, [("a" * 20, "b" * 90), ("日" * 20, "")])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first == f"{'a' * 20}{' ' * 5}  {'b' * 24}…"
    assert second == f"{'日' * 12}…"


def test_a_long_name_leaves_room_for_the_status(runs_dir: Path) -> None:
    name = "sweep-of-everything-lr=0.001-batch=32-dropout=0.1-seed=17-last-one"
    result = run_experiment(
        "tests.support.experiments:fit", {"lr": 1.0}, backend="debug", name=name
    )
    shown = COLOUR.sub("", on_terminal("runs", "list"))
    row = shown.splitlines()[1]
    assert row.startswith(f"{result.run_id}  success ")
    assert row.endswith("…  debug")
    assert len(row) == 80


def test_a_report_cuts_long_results_on_a_terminal_and_not_the_run(
    runs_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "long_results.py").write_text(
        f"def run(): return {{'loss_of_a_stage_' * 4: 0.25, 'text': {'字' * 80!r}}}\n"
    )
    result = run_experiment(f"{tmp_path}/long_results.py:run", backend="debug")
    shown = COLOUR.sub("", on_terminal("runs", "show", "last")).splitlines()
    assert all(cell_len(line) <= 80 for line in shown[1:] if "run folder" not in line)
    assert f"{'loss of a stage ' * 4:.25}…  0.25" in shown
    assert any(line.endswith(f"  {result.run_id}") for line in shown)


def test_no_command_lets_strings_of_others_act_on_a_terminal(
    runs_dir: Path, tmp_path: Path
) -> None:
    experiments = tmp_path / "odd_experiments.py"
    experiments.write_text(
        f"odd = {ODD!r}\n"
        "def returns(config):\n    print(odd)\n    return {odd: [odd], 'v': odd}\n"
        "def fails(config): raise ValueError(odd)\n"
    )
    for function in ("returns", "fails"):
        run_experiment(f"{experiments}:{function}", {"x": ODD}, backend="debug", name=ODD)
        for command in (
            ["runs", "list"],
            ["runs", "list", "--columns", f"run_id,results.{ODD}"],
            ["runs", "show", "last"],
            ["runs", "show", "last", "--log"],
        ):
            shown = COLOUR.sub("", on_terminal(*command))
            assert "PWNED" in shown
            assert re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown) is None
    for arguments in (["runs", "show", ODD], ["run", ODD], ["cache", "show", ODD, "--local"]):
        shown = COLOUR.sub("", on_terminal(*arguments, code=2))
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown) is None


def test_the_cache_commands_print_no_escape_sequence(home: Path) -> None:
    write_repo(
        home / "hub", f"org/{ODD}", {commit_of("a"): {ODD: b"1"}}, refs={ODD: commit_of("b")}
    )
    (home / "hub" / ODD).mkdir()
    for command in (("list",), ("show", f"org/{ODD}"), ("verify",), ("clear", "*", "--dry-run")):
        shown = call_cache(home, *command, "--local").stdout
        assert "PWNED" in shown or command == ("verify",)
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown) is None


def test_the_live_report_prints_names_and_messages_as_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    observer = Display()
    specs = [RunSpec(f"run-{n}", "m:C", {}, 0, "", name=ODD) for n in range(2)]
    for spec in specs:
        observer.started(spec)
    observer.notice(specs[0], ODD)
    observer.log(specs[0], b"loss 0.5\n")
    observer.progress(specs[0], 1, 2, ODD)
    output = "".join(capsys.readouterr())
    assert output.count("PWNED") == 4
    assert "] loss 0.5\n" in output
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", output) is None
