"""Which pictures a run draws, and with which settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import PromptRow


@dataclass(frozen=True)
class DrawingSettings:
    """What a pipeline is given for a picture; None is the pipeline's own default.

    Attributes:
        height: In pixels, as is the width.
        scheduler: Its name; None is the model's own.
    """

    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None

    @classmethod
    def of(cls, row: PromptRow, recommended: Mapping[str, Any]) -> DrawingSettings:
        """Return the settings of a prompt; what it leaves open is as the model recommends."""
        given = {name: getattr(row, name) for name in cls.__dataclass_fields__}
        return cls(**{**recommended, **{k: v for k, v in given.items() if v is not None}})


@dataclass(frozen=True)
class PictureRequest:
    """One picture to draw.

    Attributes:
        index: Its place among all pictures of the run.
        number: Its place among the pictures of its prompt.
        seed: Seeds the picture's own generator, so that nothing else decides what is drawn.
    """

    index: int
    number: int
    prompt: str
    seed: int
    settings: DrawingSettings

    @property
    def batch_key(self) -> Any:
        """What pictures have in common that can be drawn together."""
        settings = dict(vars(self.settings))
        settings["negative_prompt"] = self.settings.negative_prompt is not None
        return tuple(settings.values())


def plan_pictures(
    rows: Sequence[PromptRow], seed: int, recommended: Mapping[str, Any]
) -> list[PictureRequest]:
    """Return the pictures of a run; a picture depends on seed, prompt and its number only."""
    requests: list[PictureRequest] = []
    for row in rows:
        settings = DrawingSettings.of(row, recommended)
        for number in range(row.num_images or 1):
            own = _picture_seed(seed, row.prompt, number) if row.seed is None else row.seed + number
            requests.append(PictureRequest(len(requests), number, row.prompt, own, settings))
    return requests


def _picture_seed(seed: int, prompt: str, number: int) -> int:
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:6])  # exact in JSON readers that hold numbers as floats
