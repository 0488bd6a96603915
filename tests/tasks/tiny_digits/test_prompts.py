"""The prompts that tiny-digits learns from and is judged by."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ml_experiments.tasks.tiny_digits.prompts import (
    COLOUR_NAMES,
    DIGIT_WORDS,
    MADE_UP_FILLER_LETTERS,
    draw_training_prompt,
    judged_prompts,
)


def training_prompts(count: int) -> list[tuple[str, int, str]]:
    rng = random.Random(1)
    drawn = [(rng.randrange(10), rng.choice(COLOUR_NAMES)) for _ in range(count)]
    return [(draw_training_prompt(rng, digit, colour), digit, colour) for digit, colour in drawn]


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def test_training_prompts_name_their_digit_and_colour_and_no_other() -> None:
    for text, digit, colour in training_prompts(3000):
        words = _words(text)
        assert [w for w in words if w in DIGIT_WORDS or w.isdigit()] in (
            [DIGIT_WORDS[digit]],
            [str(digit)],
        )
        named = [w for w in words if w in COLOUR_NAMES]
        assert named == [colour] or (colour == "white" and not named)


@pytest.mark.slow
def test_unseen_wordings_have_a_word_that_no_training_prompt_has() -> None:
    pytest.importorskip("transformers")
    from ml_experiments.tasks.tiny_digits.tokenizer import word_counts

    listed = set(word_counts())

    def is_unseen(word: str) -> bool:
        return word not in listed and len(word) > max(MADE_UP_FILLER_LETTERS)

    for text, *_ in training_prompts(3000):
        assert not any(map(is_unseen, _words(text))), text
    for prompt in judged_prompts(200, unseen=True):
        assert any(map(is_unseen, _words(prompt.text))), prompt.text


@pytest.mark.parametrize("unseen", [False, True])
def test_judged_prompts_go_round_all_digits_and_colours(unseen: bool) -> None:
    prompts = judged_prompts(80, unseen=unseen)
    assert Counter((p.digit, p.colour) for p in prompts) == {
        (digit, colour): 1 for digit in range(10) for colour in COLOUR_NAMES
    }
    for prompt in prompts:
        words = _words(prompt.text)
        assert DIGIT_WORDS[prompt.digit] in words or str(prompt.digit) in words
        assert prompt.colour in words or prompt.colour == "white"
