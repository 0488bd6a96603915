"""What a terminal would show of a program's output, whatever pieces it comes in."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from ml_experiments.runner.display.terminal_rows import TerminalRows

RED, RESET = "\x1b[31m", "\x1b[0m"


def shown(output: str, piece: int = 10**9, *, colours: bool = True) -> tuple[list[str], list[str]]:
    rows, finished = TerminalRows(colours=colours), []
    for start in range(0, len(output), piece):
        finished += rows.feed(output[start : start + piece])
    return finished, rows.unfinished


@pytest.mark.parametrize("piece", [1, 2, 3, 10**9])
@pytest.mark.parametrize(
    ("output", "finished", "unfinished"),
    [
        ("one\ntwo\n", ["one", "two"], []),
        ("one\r\ntwo\r\n", ["one", "two"], []),
        ("..", [], [".."]),
        ("\r 10%\r 20%", [], [" 20%"]),
        ("\r 10%\r100%\ndone", ["100%"], ["done"]),
        ("working\r       \r", [], []),
        ("|\b/\b-", [], ["-"]),
        ("  9%\b\b\b\b 10%", [], [" 10%"]),
        ("long text\r\x1b[Kshort\n", ["short"], []),
        ("long text\x1b[2K\rshort\n", ["short"], []),
        ("\a\x00bell\x0e \x9bgone\x7f\n", ["bell gone"], []),
        ("\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["textlink"], []),
        ("\x1b[?25l\x1b[2J\x1b[3;4Hkept\n\x1b[?25h", ["kept"], []),
        ("a\tb\n\n  c\n", ["a\tb", "", "  c"], []),
        (f"{RED}a\nb{RESET}c\nd\n", [f"{RED}a{RESET}", f"{RED}b{RESET}c{RESET}", "d"], []),
        (f"{RED}50%\r{RESET}100%\n", ["100%"], []),
        (f"text\r{RESET}\n", ["text"], []),
        ("学習中 🚀\n学", ["学習中 🚀"], ["学"]),
        ("half \x1b[3", [], ["half "]),
    ],
)
def test_rows_are_those_of_a_terminal(
    output: str, finished: list[str], unfinished: list[str], piece: int
) -> None:
    assert shown(output, piece) == (finished, unfinished)


def test_colours_are_left_out_where_they_are_not_wanted() -> None:
    assert shown(f"{RED}red{RESET}\n{RED}more", colours=False) == (["red"], ["more"])


@pytest.mark.parametrize("piece", [7, 4096])
def test_nested_bars_stay_two_rows(piece: int) -> None:
    output = io.StringIO()
    for _ in tqdm(range(3), desc="epochs", file=output, mininterval=0):
        for _ in tqdm(range(20), desc="batches", file=output, mininterval=0, leave=False):
            pass
    output.write("done\n")
    finished, unfinished = shown(output.getvalue(), piece)
    lines = [*finished, *unfinished]
    assert len(lines) <= 3
    assert "epochs: 100%" in lines[-2]
    assert lines[-1] == "done"


def test_text_that_was_only_added_to_may_be_passed_on_at_once() -> None:
    rows = TerminalRows(colours=False)
    rows.feed("one\n..")
    assert rows.growing == ".."
    rows.feed(".\r")
    assert rows.growing == ""
    rows.feed("over\n.")
    assert rows.growing == "."


def test_an_escape_sequence_without_end_holds_nothing_back_for_ever() -> None:
    finished, _ = shown("\x1b]0;" + "x" * 10_000 + "\nnext\n", 1000)
    assert finished[-1] == "next"
