"""What tiny-digits learns from and is judged by: prompts, tokens, digits, judge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ml_experiments.tasks.tiny_digits import model_dir
from ml_experiments.tasks.tiny_digits.prompts import (
    COLOUR_NAMES,
    DIGIT_WORDS,
    MADE_UP_FILLER_LETTERS,
    draw_training_prompt,
    judged_prompts,
)


def _training_prompts(count: int) -> list[tuple[str, int, str]]:
    rng = random.Random(1)
    drawn = [(rng.randrange(10), rng.choice(COLOUR_NAMES)) for _ in range(count)]
    return [(draw_training_prompt(rng, digit, colour), digit, colour) for digit, colour in drawn]


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def test_training_prompts_name_their_digit_and_colour_and_no_other() -> None:
    for text, digit, colour in _training_prompts(3000):
        words = _words(text)
        assert [w for w in words if w in DIGIT_WORDS or w.isdigit()] in (
            [DIGIT_WORDS[digit]],
            [str(digit)],
        )
        named = [w for w in words if w in COLOUR_NAMES]
        assert named == [colour] or (colour == "white" and not named)


@pytest.mark.slow
def test_unseen_wordings_have_a_word_that_no_training_prompt_has() -> None:
    from ml_experiments.tasks.tiny_digits.tokenizer import word_counts

    listed = set(word_counts())

    def is_unseen(word: str) -> bool:
        return word not in listed and len(word) > max(MADE_UP_FILLER_LETTERS)

    for text, *_ in _training_prompts(3000):
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


def test_merges_join_the_commonest_pair_first_and_ties_go_by_spelling() -> None:
    pytest.importorskip("transformers")
    from ml_experiments.tasks.tiny_digits.tokenizer import learn_merges

    assert learn_merges(Counter({"ab": 1, "cd": 2, "ac": 1}), 9) == [
        ("c", "d</w>"),
        ("a", "b</w>"),
        ("a", "c</w>"),
    ]
    assert learn_merges(Counter({"seven": 1}), 2) == [("e", "n</w>"), ("e", "v")]


@pytest.mark.slow
def test_tokenizer_is_the_same_in_every_process_and_the_one_that_is_shipped(tmp_path: Path) -> None:
    code = (
        "import sys; from ml_experiments.tasks.tiny_digits.tokenizer import build_tokenizer; "
        "build_tokenizer().save_pretrained(sys.argv[1])"
    )
    for hash_seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / hash_seed],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
        )
    built = [(tmp_path / seed / "tokenizer.json").read_text(encoding="utf-8") for seed in "12"]
    assert built[0] == built[1]
    shipped_model = json.loads((model_dir() / "tokenizer/tokenizer.json").read_text("utf-8"))
    assert json.loads(built[0])["model"] == shipped_model["model"]


@pytest.mark.slow
def test_tokenizer_knows_each_digit_and_colour_as_one_token_and_fits_every_training_prompt() -> (
    None
):
    from ml_experiments.tasks.tiny_digits.tokenizer import MAX_LENGTH, build_tokenizer

    tokenizer = build_tokenizer()
    for word in (*DIGIT_WORDS, *"0123456789", *COLOUR_NAMES):
        assert len(tokenizer(word).input_ids) == 3  # with start and end
    for text, *_ in _training_prompts(3000):
        tokens = tokenizer(text).input_ids
        assert len(tokens) <= MAX_LENGTH
        assert tokens.count(tokenizer.unk_token_id) == 1  # the end, which is the same token


@pytest.mark.slow
def test_judge_reads_digits_that_it_never_saw_and_every_colour() -> None:
    from ml_experiments.tasks.tiny_digits.digits import load_split, palette
    from ml_experiments.tasks.tiny_digits.judge import Judge, read_colours

    training, held_out = load_split()
    assert (len(training.ink), len(held_out.ink)) == (1300, 497)
    judge = Judge.train(held_out)
    assert judge.accuracy(training) >= 0.97
    which = np.arange(len(training.ink)) % len(COLOUR_NAMES)
    inked = training.ink[..., None] * palette()[which][:, None, None]
    pictures = np.round(inked * 255).astype(np.uint8)
    assert read_colours(pictures) == [COLOUR_NAMES[index] for index in which]
    right = np.array(judge.read_digits(pictures)) == training.labels
    assert right.mean() == pytest.approx(judge.accuracy(training), abs=0.005)
    # real against real is nearly nothing; one digit only, or noise, is not
    everything = judge.frechet_distance(pictures)
    assert everything < 0.1
    assert judge.frechet_distance(pictures[training.labels == 1]) > 5 * everything
    noise = np.random.default_rng(0).integers(0, 256, pictures.shape, dtype=np.uint8)
    assert judge.frechet_distance(noise) > 5 * everything
