"""The judge: says what digit and what colour a picture shows, from digits the model never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from ml_experiments.tasks.tiny_digits.digits import Digits, palette
from ml_experiments.tasks.tiny_digits.prompts import COLOUR_NAMES

Pixels = NDArray[np.uint8]
Features = NDArray[np.float64]
FEATURE_SIZE = 8


@dataclass(frozen=True)
class Judge:
    """A classifier of digits, and the digits that it learned from.

    Attributes:
        reference: (n, 64), the 8x8 ink strengths of the held-out digits.
    """

    classifier: Any
    reference: Features

    @classmethod
    def train(cls, held_out: Digits) -> Judge:
        """Return a judge that learned from digits held out of the model's training."""
        reference = ink_features(held_out.ink)
        return cls(SVC(C=5, gamma=0.2).fit(reference, held_out.labels), reference)

    def accuracy(self, digits: Digits) -> float:
        """Return the share of real digits that the judge reads as labelled."""
        return float(self.classifier.score(ink_features(digits.ink), digits.labels))

    def read_digits(self, pictures: Pixels) -> list[int]:
        """Return the digit that each picture (n, 32, 32, 3) shows."""
        return [int(digit) for digit in self.classifier.predict(picture_features(pictures))]

    def frechet_distance(self, pictures: Pixels) -> float:
        """Return the Fréchet distance between pictures and held-out digits, in 8x8 ink strengths.

        Source: Heusel et al. 2017, arXiv:1706.08500, with pixels in place of Inception features.
        """
        features = picture_features(pictures)
        ours, theirs = (np.cov(x, rowvar=False) for x in (features, self.reference))
        shift = features.mean(0) - self.reference.mean(0)
        # eigenvalues of a product of covariances are real and not negative, but for rounding
        shared = np.sqrt(np.clip(np.linalg.eigvals(ours @ theirs).real, 0, None)).sum()
        return float(shift @ shift + np.trace(ours) + np.trace(theirs) - 2 * shared)


def read_colours(pictures: Pixels) -> list[str]:
    """Return the nearest of the ink colours for each picture (n, 32, 32, 3)."""
    total = pictures.reshape(len(pictures), -1, 3).astype(np.float64).sum(1)
    hue = total / np.maximum(total.max(1, keepdims=True), 1)
    nearest = np.square(hue[:, None] - palette()).sum(2).argmin(1)
    return [COLOUR_NAMES[index] for index in nearest]


def picture_features(pictures: Pixels) -> Features:
    """Return the 8x8 ink strengths, (n, 64), of pictures (n, 32, 32, 3)."""
    return ink_features(pictures.max(3).astype(np.float32) / 255)


def ink_features(ink: NDArray[np.float32]) -> Features:
    """Return the 8x8 means, (n, 64), of ink strengths (n, 32, 32)."""
    block = ink.shape[1] // FEATURE_SIZE
    blocks = ink.reshape(len(ink), FEATURE_SIZE, block, FEATURE_SIZE, block)
    features: Features = blocks.mean((2, 4), dtype=np.float64).reshape(len(ink), -1)
    return features
