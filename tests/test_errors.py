"""The known word that is meant."""

from __future__ import annotations

import pytest

from ml_experiments.errors import suggest


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("a10", ["t4", "a10g", "h100"], " (did you mean 'a10g'?)"),
        ("TRAIN", ["Train", "Test"], " (did you mean 'Train'?)"),
        ("promt", {"prompt": 1, "negative_prompt": 2}, " (did you mean 'prompt'?)"),
        ("zzz", ["t4"], ""),
        ("gpu", ["cpu"], ""),
        ("lrr", ["lr"], " (did you mean 'lr'?)"),
        ("x", [], ""),
        ("", ["a"], ""),
    ],
)
def test_the_closest_word_is_suggested(word: str, known: list[str], expected: str) -> None:
    assert suggest(word, known) == expected
