"""tiny-digits: a Stable Diffusion pipeline of under 3 MB, and the experiment that trains it."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from ml_experiments.tasks.tiny_digits.experiment import TrainTinyDigits
from ml_experiments.tasks.tiny_digits.model_card import RECOMMENDED_SETTINGS

__all__ = ["RECOMMENDED_SETTINGS", "TrainTinyDigits", "model_dir"]


def model_dir() -> Path:
    """Return the folder of the trained pipeline that comes with this package."""
    return Path(str(importlib.resources.files(__name__))) / "model"
