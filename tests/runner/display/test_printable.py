"""No string of others reaches a terminal with anything that the terminal would obey."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.runner.display import printable as module
from ml_experiments.runner.display.printable import printable, printable_lines

# surrogates too: half a character, as in a file name that isn't UTF-8
ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)


@given(ANY)
def test_any_string_becomes_one_line_that_can_be_printed(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert printable(shown) == shown


@given(ANY)
def test_any_text_keeps_its_lines_and_nothing_else_that_acts_on_a_terminal(text: str) -> None:
    shown = printable_lines(text)
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    assert printable_lines(shown) == shown


def test_what_is_printable_stays_as_it_is() -> None:
    for text in ("", "a red seven", "日本語", "naïve ≤ 3 🎲"):
        assert printable(text) == printable_lines(text) == text


def test_direction_marks_and_escape_sequences_are_shown_as_escapes() -> None:
    assert printable("a\u202eb\x1b]0;x\x07") == r"a\u202eb\x1b]0;x\x07"
    assert printable_lines("\x1b[1;31mred\x1b[0m\x1b[2J\tx\n") == "red\\x1b[2J\tx\n"


def test_the_examples_are_right() -> None:
    outcome = doctest.testmod(module)
    assert (outcome.failed, outcome.attempted) == (0, 2)
