"""The display of a process's runs, fed by hand."""

from __future__ import annotations

import math

import pytest

from ml_experiments.runner.display.observers import Display
from ml_experiments.runs.spec import RunSpec


def spec(name: str) -> RunSpec:
    return RunSpec(run_id=name, experiment="a.b", config={}, seed=1, created_at="", name=name)


def test_lines_have_a_prefix_while_several_runs_are_live(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display, one, two = Display(), spec("one"), spec("two")
    display.started(one)
    display.log(one, b"alone\nbeg")
    display.started(two)
    display.log(one, b"un\n")
    display.log(two, b"\r10%\r20%")
    display.forget("one")
    display.log(two, b"\nstill shared\nno end")
    display.forget("two")
    display.log(one, b"alone again\n")
    display.forget("one")
    assert capsys.readouterr().out.splitlines() == [
        "alone",
        "beg",
        "[one] begun",
        "[two] 20%",
        "[two] still shared",
        "[two] no end",
        "alone again",
    ]


def test_what_others_wrote_is_no_command_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display, run = Display(), spec("\x1b[2Jname")
    display.notice(run, "two\nlines \x1b[2J")
    display.progress(run, 1, 1, "a\n\x1b[2Jtext")
    display.progress(run, math.nan, math.inf, "")
    display.progress(run, 1, 0, "")
    display.forget(run.run_id)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert shown.splitlines()[:2] == ["two", "lines \\x1b[2J"]
    assert len(shown.splitlines()) == 3


def test_a_secret_in_the_name_of_a_run_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "tok-5f4dcc3b5aa7")
    display, run = Display(), spec("of tok-5f4dcc3b5aa7")
    display.progress(run, 1, 1, "")
    display.forget(run.run_id)
    assert capsys.readouterr().err == "of <redacted>: 1/1\n"


def test_an_unknown_run_is_forgotten_in_silence() -> None:
    Display().forget("nothing")
