"""Configs of every kind that tests validate."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from pathlib import Path
from typing import Any, Literal, NotRequired

import pydantic
import pytest
from typing_extensions import TypedDict

from ml_experiments.config.validation import validate_config
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import Experiment, ExperimentConfig


class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"


class Optimizer(pydantic.BaseModel):  # ignores unknown keys, as pydantic does by default
    lr: float = pydantic.Field(1e-3, gt=0, le=1)
    name: Literal["adam", "sgd"] = "adam"


@dataclasses.dataclass
class Crop:
    width: int
    height: int = 1


class Label(TypedDict):
    text: str
    weight: NotRequired[float]


class Free(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int = 1


class TrainConfig(ExperimentConfig):
    model_name: str
    steps: int = pydantic.Field(10, ge=1, le=100)
    optimizer: Optimizer = Optimizer()
    others: list[Optimizer] = []
    by_name: dict[str, Optimizer] = {}
    either: Optimizer | Crop | None = None
    crop: Crop = Crop(2)
    label: Label = {"text": "x"}
    free: Free = Free()
    shade: Shade = Shade.DARK
    sizes: tuple[int, ...] = (1, 2)
    tags: frozenset[str] = frozenset()
    limit: float = math.inf
    day: datetime.date | None = None
    folder: Path = Path("data")
    raw: bytes = b""
    wait: datetime.timedelta = datetime.timedelta(seconds=1)
    key: pydantic.SecretStr | None = None
    batch: int = pydantic.Field(1, alias="batchSize")
    rate: float = pydantic.Field(
        1.0, validation_alias=pydantic.AliasChoices("rate_hz", "hz"), serialization_alias="out"
    )

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.steps * 2


class Train(Experiment):
    Config = TrainConfig


def problems_of(experiment: Any, data: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        validate_config(experiment, data)
    pairs = [problem.partition(": ")[::2] for problem in caught.value.problems]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def write_file(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file
