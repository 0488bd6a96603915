"""tiny-digits: a Stable Diffusion pipeline of under 3 MB, and the experiment that trains it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_experiments.tasks.tiny_digits.experiment import TrainTinyDigits

__all__ = ["RECOMMENDED_SETTINGS", "TrainTinyDigits", "model_dir"]

# what it draws best with, as its model card says
RECOMMENDED_SETTINGS: Mapping[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0}


def model_dir() -> Path:
    """Return the folder of the trained pipeline that comes with this package."""
    return Path(str(importlib.resources.files(__name__))) / "model"
