"""The tokenizer of tiny-digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ml_experiments.tasks.tiny_digits import model_dir
from ml_experiments.tasks.tiny_digits.prompts import (
    COLOUR_NAMES,
    DIGIT_WORDS,
)
from tests.tasks.tiny_digits.test_prompts import training_prompts


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
    pytest.importorskip("transformers")
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
    pytest.importorskip("transformers")
    from ml_experiments.tasks.tiny_digits.tokenizer import MAX_LENGTH, build_tokenizer

    tokenizer = build_tokenizer()
    for word in (*DIGIT_WORDS, *"0123456789", *COLOUR_NAMES):
        assert len(tokenizer(word).input_ids) == 3  # with start and end
    for text, *_ in training_prompts(3000):
        tokens = tokenizer(text).input_ids
        assert len(tokens) <= MAX_LENGTH
        assert tokens.count(tokenizer.unk_token_id) == 1  # the end, which is the same token
