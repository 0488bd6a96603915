"""Values that travel as JSON and files, and how they are compared."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.typed_json import from_json
from ml_experiments.serialization.writing import encode


def travel(value: Any, artifacts: Path) -> Any:
    """Encode, write and read strict JSON twice over, decode."""
    encoded, problems = encode(value, artifacts, "results")
    assert problems == ()
    once = from_json(json.loads(json.dumps(encoded, allow_nan=False)))
    return from_json(json.loads(json.dumps(to_json(once), allow_nan=False)))


def travel_and_load(value: Any, artifacts: Path) -> Any:
    return load_file(travel(value, artifacts), artifacts.parent)


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN, -0.0 differs from 0.0, and types count."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float | decimal.Decimal):
        return repr(a) == repr(b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


def kind(value: Any) -> str:
    """The name of a case: the same in every worker, as a repr with an address is not."""
    return type(value).__name__


class Color(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass
class Metrics:
    loss: float
    points: list[Point]
    counts: dict[int, int]


def generator() -> Any:
    yield 1


class NotPlain:
    pass


def nested(levels: int, wrap: Any) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = wrap(value)
    return value
