"""The training data: scikit-learn's handwritten digits, enlarged and inked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from ml_experiments.tasks.tiny_digits.prompts import COLOURS

IMAGE_SIZE = 32
TRAINING_COUNT = 1300
BRIGHTEST = 16
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Handwritten digits as ink strengths.

    Attributes:
        ink: (n, 32, 32), 0 to 1.
        labels: (n,), the digit that each one shows.
    """

    ink: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_split() -> tuple[Digits, Digits]:
    """Return the 1,300 digits to train with, and the 497 others that only the judge sees."""
    data = load_digits()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(data.target))
    ink = np.stack([_enlarge(image) for image in data.images])
    labels = np.asarray(data.target, dtype=np.int64)
    parts = (order[:TRAINING_COUNT], order[TRAINING_COUNT:])
    training, held_out = (Digits(ink[part], labels[part]) for part in parts)
    return training, held_out


def palette() -> NDArray[np.float32]:
    """Return the ink colours, (8, 3), 0 to 1, in the order of `COLOURS`."""
    return np.asarray(list(COLOURS.values()), dtype=np.float32) / np.float32(255)


def _enlarge(image: NDArray[Any]) -> NDArray[np.float32]:
    grey = Image.fromarray(np.round(image * (255 / BRIGHTEST)).astype(np.uint8))
    enlarged = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float32) / np.float32(255)
