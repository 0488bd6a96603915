"""Values of classes and libraries come back as plain data."""

from __future__ import annotations

import collections
import datetime
import enum
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import pytest

from ml_experiments.serialization.loading import load_file
from tests.support.torch_values import with_torch
from tests.support.values import Color, Metrics, Point, kind, same, travel


class Level(enum.IntEnum):
    HIGH = 3


class Report(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)
    name: str
    metrics: Any = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def title(self) -> str:
        return self.name.title()


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Wrapped(pydantic.RootModel[Report]):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Color.RED, "red"),
        (Level.HIGH, 3),
        ({Color.RED: Level.HIGH}, {"red": 3}),
        ((1, (2, 3)), [1, [2, 3]]),
        (range(3), [0, 1, 2]),
        (collections.deque([1]), [1]),
        ({"a": 1}.values(), [1]),
        ({"b": 1, "a": 2}.keys(), ["b", "a"]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Point(1.0, 2.0), {"x": 1.0, "y": 2.0}),
        (
            Metrics(math.inf, [Point(0.0, 1.0)], {1: 2}),
            {"loss": math.inf, "points": [{"x": 0.0, "y": 1.0}], "counts": {1: 2}},
        ),
        (
            Report(name="first", metrics=Metrics(0.5, [], {}), more=1),
            {
                "name": "first",
                "metrics": {"loss": 0.5, "points": [], "counts": {}},
                "more": 1,
                "title": "First",
            },
        ),
        (Numbers([1, 2]), [1, 2]),
        (Wrapped(Report(name="a")), {"name": "a", "metrics": None, "title": "A"}),
        (np.array(Color.RED, dtype=object), "red"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float16(0.1), float(np.float16(0.1))),
        (np.float64("nan"), math.nan),
        (np.longdouble(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.complex64(1j), 1j),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.array(7), 7),
        (np.array({"a": 1}, dtype=object), {"a": 1}),
        (np.array((1, 2.5), dtype=[("n", "i4"), ("x", "f8")])[()], {"n": 1, "x": 2.5}),
        (np.datetime64("2026-01-02"), datetime.date(2026, 1, 2)),
        (np.datetime64("2026-01-02T03:04:05.000006000"), datetime.datetime(2026, 1, 2, 3, 4, 5, 6)),
        (np.timedelta64(90, "s"), datetime.timedelta(seconds=90)),
        *with_torch(
            2,
            lambda torch: [
                (torch.tensor(0.1), float(torch.tensor(0.1))),
                (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
                (torch.tensor(True), True),
                (torch.tensor(1j), 1j),
                (torch.Size([1, 2]), [1, 2]),
            ],
        ),
        (pd.Timestamp("2026-01-02", tz="UTC"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        (pd.Timedelta(seconds=1), datetime.timedelta(seconds=1)),
        (pd.Index([1, 2]), [1, 2]),
        ({np.int64(1): np.float32(2)}, {1: 2.0}),
    ],
    ids=kind,
)
def test_a_richer_value_comes_back_as_plain_data(
    value: Any, expected: Any, artifacts: Path
) -> None:
    found = travel({"value": value}, artifacts)["value"]
    assert same(found, expected)
    assert list(artifacts.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2026-01-02T03:04:05.000000001"),
        np.datetime64("NaT", "ns"),
        np.datetime64("20000-01-01", "D"),
        np.timedelta64(1, "ns"),
        np.datetime64("NaT"),
        np.timedelta64(7),
        np.timedelta64(5, "Y"),
        pd.NaT,
        pd.NA,
        pd.Timestamp("2026-01-02T03:04:05.000000001"),
    ],
    ids=repr,
)
def test_a_time_that_python_has_no_type_for_is_loaded_by_its_descriptor(
    value: Any, artifacts: Path
) -> None:
    loaded = load_file(travel(value, artifacts), None)
    expected = value.to_datetime64() if type(value) is pd.Timestamp else value
    assert type(loaded) is type(expected)
    assert str(loaded) == str(expected)
    assert getattr(loaded, "dtype", None) == getattr(expected, "dtype", None)


def test_results_need_no_library_that_the_value_is_not_from() -> None:
    code = """
import sys
from pathlib import Path
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.writing import encode
from ml_experiments.serialization.typed_json import from_json
encoded, problems = encode({"a": [1.5, {2: b"x"}], "p": Path("x")}, Path("artifacts"), "results")
assert problems == (), problems
to_json(from_json(encoded))
heavy = {"torch", "numpy", "PIL", "pandas", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
