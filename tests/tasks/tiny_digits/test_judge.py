"""The judge of tiny-digits."""

from __future__ import annotations

import numpy as np
import pytest

from ml_experiments.tasks.tiny_digits.prompts import (
    COLOUR_NAMES,
)


@pytest.mark.slow
def test_judge_reads_digits_that_it_never_saw_and_every_colour() -> None:
    pytest.importorskip("sklearn")
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
