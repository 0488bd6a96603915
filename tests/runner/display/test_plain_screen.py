"""What a pipe or a file gets: lines, of bars the last state, and nothing glued together."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ml_experiments.runner.display.plain_screen import PlainScreen, ShownRun, write
from ml_experiments.runner.display.terminal_rows import TerminalRows


def new_run(name: str = "x") -> ShownRun:
    return ShownRun(name, TerminalRows(colours=True), is_debugged=False)


def feed(screen: PlainScreen, run: ShownRun, output: str) -> None:
    screen.show(run, run.rows.feed(output), run.rows.growing)


def end(screen: PlainScreen, run: ShownRun) -> None:
    screen.show(run, run.rows.end(), "")


def test_of_a_bar_its_last_state_is_written() -> None:
    screen, run = PlainScreen(out := io.StringIO(), io.StringIO()), new_run()
    for percent in range(101):
        feed(screen, run, f"\r{percent:3d}%")
    assert out.getvalue() == ""
    feed(screen, run, "\nnext")
    assert out.getvalue() == "100%\nnext"
    end(screen, run)
    assert out.getvalue() == "100%\nnext\n"


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ((".", ".", ".\n"), ["", ".", "..", "...\n"]),
        (("10%", "\r20%", "\n"), ["", "10%", "10%", "10%\n20%\n"]),
        (("\x1b[31mre", "d\n"), ["", "\x1b[31mre", "\x1b[31mred\x1b[0m\n"]),
    ],
)
def test_a_line_that_grows_is_written_as_it_does(
    pieces: tuple[str, ...], written: list[str]
) -> None:
    screen, run = PlainScreen(out := io.StringIO(), io.StringIO()), new_run()
    seen = [out.getvalue()]
    for piece in pieces:
        feed(screen, run, piece)
        seen.append(out.getvalue())
    assert seen == written


def test_lines_of_others_begin_on_a_line_of_their_own(tmp_path: Path) -> None:
    with (tmp_path / "both").open("a") as out, (tmp_path / "both").open("a") as err:
        screen, one, other = PlainScreen(out, err), new_run("one"), new_run("other")
        feed(screen, one, "..")
        feed(screen, other, "line\n..")
        screen.notice("a notice")
        end(screen, one)
        end(screen, other)
    assert (tmp_path / "both").read_text().splitlines()[:4] == ["..", "line", "..", "a notice"]


def test_a_line_that_a_notice_breaks_goes_on_below_it(tmp_path: Path) -> None:
    with (tmp_path / "both").open("a") as out, (tmp_path / "both").open("a") as err:
        screen, run = PlainScreen(out, err), new_run()
        feed(screen, run, "one ")
        screen.notice("1/3")
        screen.notice("2/3")
        feed(screen, run, "two ")
        feed(screen, run, "three")
        screen.notice("3/3")
        feed(screen, run, "\nfour")
    assert (tmp_path / "both").read_text() == "one \n1/3\n2/3\ntwo three\n3/3\nfour"


def test_progress_is_a_line_at_every_tenth() -> None:
    screen, run = PlainScreen(io.StringIO(), err := io.StringIO()), new_run()
    for stage in ("first", "second"):
        for step in range(1, 1001):
            run.done, run.total, run.text = step * 1000, 1_000_000, stage
            screen.progress(run)
    lines = err.getvalue().splitlines()
    assert lines[:2] == ["x: 100000/1000000 first", "x: 200000/1000000 first"]
    assert lines[-1] == "x: 1000000/1000000 second"
    assert len(lines) == 20


def test_what_an_encoding_lacks_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write(stream, "é")
    write(None, "nowhere")
    assert stream.buffer.getvalue() == b"\\xe9"  # type: ignore[attr-defined]
