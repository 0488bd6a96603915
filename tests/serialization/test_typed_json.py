"""Python values that JSON has no type for come back as they were."""

from __future__ import annotations

import copy
import datetime
import decimal
import json
import math
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_experiments.errors import RunFolderError
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.typed_json import from_json
from tests.support.values import kind, nested, same, travel

VIENNA = zoneinfo.ZoneInfo("Europe/Vienna")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**53 + 1,
        2**64,
        -(2**63) - 1,
        10**6000,
        -(10**6000),
        0.1,
        -0.0,
        5e-324,
        math.nan,
        math.inf,
        -math.inf,
        1 + 2j,
        complex(math.nan, -math.inf),
        decimal.Decimal("1.10"),
        uuid.UUID(int=5),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5))),
        datetime.datetime(2026, 10, 25, 2, 30, tzinfo=VIENNA, fold=1),
        datetime.date(1, 1, 1),
        datetime.time(23, 59, 59, 999999),
        datetime.timedelta(days=-999999999, microseconds=1),
        Path("some/where"),
        Path("/etc/hosts"),
        Path("not-utf8-\udcff"),
        PureWindowsPath("C:\\data"),
        b"",
        bytes(range(256)),
        {1, "a", None, (1, (2, "b")), frozenset({3})},
        set(),
        "text \x00 \n é 猫 \U0001f600",
        "lone \ud800 surrogate",
        "\ud83d\ude00",  # two halves, which must not become one character
        {"$type": "float", "value": "nan"},
        {"$type": "ndarray", "path": "../../etc/passwd"},
        {"$type": 5, "nested": {"$type": {"$type": "dict"}}},
        {1: "int", "1": "str", 1.5: "float", None: "none", (1, "a"): "tuple", b"k": "bytes"},
        {True: 1, "True": 2, math.inf: 3, datetime.date(2026, 1, 1): 4, frozenset({1}): 5},
        {"lone \ud800": 1, "": 2, "a.b": 3, "../../x": 4},
        [[], {}, [[]], [{}]],
    ],
    ids=kind,
)
def test_a_plain_value_comes_back_as_it_was(value: Any, artifacts: Path) -> None:
    found = travel({"value": value}, artifacts)["value"]
    expected = Path(value) if isinstance(value, PurePosixPath) else value
    assert same(found, expected)
    assert getattr(found, "fold", 0) == getattr(value, "fold", 0)
    assert list(artifacts.iterdir()) == []


def test_a_date_keeps_its_time_zone(artifacts: Path) -> None:
    found = travel(datetime.datetime(2026, 7, 1, tzinfo=VIENNA), artifacts)
    assert found.tzinfo == VIENNA
    assert found + datetime.timedelta(days=180) == datetime.datetime(2026, 12, 28, tzinfo=VIENNA)


@pytest.mark.parametrize(
    "data",
    [
        {"$type": "float"},
        {"$type": "float", "value": "x"},
        {"$type": "int", "hex": 5},
        {"$type": "datetime", "value": "yesterday"},
        {"$type": "decimal", "value": "x"},
        {"$type": "bytes", "base64": "?"},
        {"$type": "dict", "items": [1]},
        {"$type": "dict", "items": [[{}, 1]]},
        {"$type": "set", "items": 5},
        {"$type": "path", "value": 1, "flavour": "posix"},
    ],
    ids=json.dumps,
)
def test_damaged_json_is_an_error(data: Any) -> None:
    with pytest.raises(RunFolderError, match=f"damaged {data['$type']}"):
        from_json([data])


def test_unknown_types_and_file_descriptors_stay_as_they_are() -> None:
    data = {"$type": "from the future", "x": {"$type": "float", "value": "nan"}}
    decoded = from_json(data)
    assert decoded == data
    assert to_json(decoded) == data
    assert copy.deepcopy(decoded) == data


def test_json_that_is_too_deep_is_an_error() -> None:
    with pytest.raises(RunFolderError, match="deeper"):
        from_json(nested(800, lambda value: [value]))


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # with lone surrogates
    | st.binary()
    | st.complex_numbers()
    | st.decimals()
    | st.datetimes(timezones=st.just(datetime.UTC) | st.none())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
)


keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.binary() | st.dates(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


odd_keys = st.sampled_from(["$type", "value", "items", "path", "float", "dict", "..", "/"])


trees = st.recursive(
    scalars | st.sets(keys, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | odd_keys, inner, max_size=4)
        | st.fixed_dictionaries({"$type": odd_keys, "value": inner})
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=trees)
def test_any_tree_comes_back_as_it_was(value: Any, tmp_path_factory: Any) -> None:
    artifacts = tmp_path_factory.getbasetemp() / "tree" / "artifacts"
    assert same(travel(value, artifacts), value)
    assert same(from_json(json.loads(json.dumps(to_json(value), allow_nan=False))), value)
