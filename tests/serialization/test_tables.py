"""pandas tables travel as CSV and a descriptor, and come back exactly."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_series_equal

from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.typed_json import from_json
from ml_experiments.serialization.writing import encode


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "run" / "artifacts"


def travel(value: Any, artifacts: Path) -> Any:
    encoded, problems = encode({"table": value}, artifacts, "results")
    assert problems == ()
    decoded = from_json(json.loads(json.dumps(encoded, allow_nan=False)))
    decoded = from_json(json.loads(json.dumps(to_json(decoded), allow_nan=False)))
    return load_file(decoded["table"], artifacts.parent)


OFFSETS: Any = ["2026-01-01T00:00+05:30", None, "2026-01-02T00:00+05:30"]
DATES: Any = pd.to_datetime(pd.Series(["2026-01-01", None, "2026-01-02"]))

COLUMNS: dict[str, Any] = {
    "int8": np.array([1, -2, 3], dtype="int8"),
    "uint64": np.array([0, 2**64 - 1, 1], dtype="uint64"),
    "float64": [0.1, np.nan, -np.inf],
    "float32": np.array([0.1, 1e-40, np.nan], dtype="float32"),
    "float16": np.array([0.1, -0.0, np.nan], dtype="float16"),
    "bool": [True, False, True],
    "complex": [1j, 2, complex(np.nan, 1)],
    "text": ["a", "", "NA"],
    "strings with gaps": ["a", None, ""],
    "hard strings": ['"\r\n,', "\x00 \ud800 猫", " lead; <NA>"],
    "object": np.array(["x", None, ""], dtype=object),
    "object with nan": np.array(["x", np.nan, ""], dtype=object),
    "mixed": np.array([1, "a", None], dtype=object),
    "mixed gaps": np.array(["a", None, np.nan], dtype=object),
    "lists": [[1], [], [1, [2.5, None]]],
    "dates": [datetime.date(2026, 1, 1), None, datetime.date(1, 1, 1)],
    "seconds": np.array(["2026-01-01", "NaT", "9999-01-01"], dtype="datetime64[s]"),
    "nanoseconds": np.array([1, 2, 3], dtype="datetime64[ns]"),
    "zone": pd.date_range("2026-10-25", periods=3, freq="h", tz="Europe/Vienna"),
    "offset": pd.to_datetime(OFFSETS),
    "duration": np.array([1, "NaT", -5], dtype="timedelta64[us]"),
    "category": pd.Categorical(["a", None, "b"], categories=["b", "a", "z"], ordered=True),
    "int category": pd.Categorical([1, 2, 1]),
    "date category": pd.Categorical(DATES),
    "Int64": pd.array([1, None, 2**62 + 1], dtype="Int64"),
    "UInt8": pd.array([1, None, 255], dtype="UInt8"),
    "Float32": pd.array([0.5, None, 0.1], dtype="Float32"),
    "boolean": pd.array([True, None, False], dtype="boolean"),
    "string": pd.array(["a", None, "<NA>"], dtype="string"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_dtype_comes_back(name: str, artifacts: Path) -> None:
    frame = pd.DataFrame({name: COLUMNS[name]})
    assert_frame_equal(travel(frame, artifacts), frame, check_exact=True)
    series = frame[name].iloc[1:]
    assert_series_equal(travel(series, artifacts), series, check_exact=True)
    empty = frame.iloc[:0]
    assert_frame_equal(travel(empty, artifacts), empty)


def test_missing_values_keep_their_kind(artifacts: Path) -> None:
    for name in ("object", "object with nan", "mixed", "mixed gaps"):
        found = travel(pd.Series(COLUMNS[name], dtype=object), artifacts).tolist()
        assert list(map(repr, found)) == list(map(repr, COLUMNS[name]))


def all_columns() -> Any:
    return pd.DataFrame({name: pd.Series(values) for name, values in COLUMNS.items()})


SMALL = pd.DataFrame({"i": [1, 2, 3], "s": ["a", "b", "a"], "f": [0.5, np.nan, 1.0]})
DAYS = pd.date_range("2026", periods=3, name="day")

FRAMES: dict[str, Any] = {
    "all columns": all_columns(),
    "nothing": pd.DataFrame(),
    "only an index": pd.DataFrame(index=["a", "b"]),
    "only a range": pd.DataFrame(index=range(3)),
    "only columns": pd.DataFrame(columns=["a", "b"]),
    "unnamed columns": pd.DataFrame(np.eye(3)),
    "range with steps": SMALL.iloc[::2],
    "int index": SMALL.loc[[2, 0]],
    "string index": SMALL.set_index("s"),
    "index with gaps": SMALL.set_index("f"),
    "days with a frequency": SMALL.set_index(DAYS),
    "days without": SMALL.set_index(DAYS[[0, 2, 1]]),
    "zone": SMALL.set_index(DAYS.tz_localize("Asia/Tokyo")),
    "durations": SMALL.set_index(pd.timedelta_range("1h", periods=3, freq="h")),
    "category": SMALL.set_index(pd.CategoricalIndex(["x", "y", "x"])),
    "two levels": SMALL.set_index(["s", "i"]),
    "one level of many": SMALL.set_index(pd.MultiIndex.from_arrays([[1, 2, 3]])),
    "tuples": pd.DataFrame({"a": [1]}, index=pd.Index([("x", 1)], tupleize_cols=False)),
    "twice the same name": pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
    "column levels": SMALL.groupby("s").agg({"i": ["mean", "sum"], "f": ["max"]}),
    "dates as columns": pd.DataFrame(np.eye(2), columns=DAYS[:2]),
    "mixed labels": pd.DataFrame([[1, 2, 3]], columns=["a", 1, None]),
    "named columns": SMALL.pivot_table(index="s", columns="i", values="f"),
    "description": SMALL.describe(),
    "one blank cell": pd.DataFrame({"a": [""]}),
    "long cell": pd.DataFrame({"a": ["x" * 1_000_000]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_of_any_shape_comes_back(name: str, artifacts: Path) -> None:
    frame = FRAMES[name]
    found = travel(frame, artifacts)
    assert_frame_equal(found, frame, check_exact=True, check_column_type="equiv")
    assert found.columns.dtype == frame.columns.dtype
    assert list(found.index.names) == list(frame.index.names)


def test_attributes_and_the_name_of_a_series_come_back(artifacts: Path) -> None:
    frame = SMALL.copy()
    frame.attrs = {"source": "test", "n": float("inf")}
    assert travel(frame, artifacts).attrs == frame.attrs
    for name in (None, "x", 3, ("a", 1)):
        assert travel(pd.Series([1], name=name), artifacts).name == name
    assert list(travel(pd.array([1, None], dtype="Int64"), artifacts)) == [1, pd.NA]


def test_the_csv_can_be_read_by_people_and_other_programs(artifacts: Path) -> None:
    travel(SMALL.set_index(DAYS), artifacts)
    text = (artifacts / "results" / "table.csv").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "day,i,s,f",
        "2026-01-01T00:00:00.000000,1,a,0.5",
        "2026-01-02T00:00:00.000000,2,b,",
        "2026-01-03T00:00:00.000000,3,a,1.0",
    ]


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (pd.DataFrame({"ok": [1], "bad": [object()]}), "bad"),
        (pd.DataFrame({"span": pd.arrays.IntervalArray.from_tuples([(0, 1)])}), "span"),
        (pd.DataFrame({"month": pd.period_range("2026", periods=1, freq="M")}), "month"),
        (pd.DataFrame({"wide": np.ones(1, dtype=np.longdouble)}), "wide"),
        (pd.DataFrame({object(): [1]}), "index"),
    ],
    ids=["object", "interval", "period", "longdouble", "label"],
)
def test_a_column_that_text_cannot_carry_is_named(frame: Any, name: str, artifacts: Path) -> None:
    encoded, problems = encode({"a": 1, "t": frame}, artifacts, "results")
    assert len(problems) == 1
    assert problems[0].startswith("results.t: pandas.")
    assert name in problems[0]
    assert encoded["a"] == 1
    assert not (artifacts / "results").exists()


cells = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(),
    "object": st.none() | st.text() | st.integers() | st.lists(st.integers(), max_size=2),
    "string": st.none() | st.text(st.characters()),
    "bool": st.booleans(),
    "Int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "category": st.none() | st.text(max_size=2),
}


@st.composite
def frames(draw: Any) -> Any:
    rows = draw(st.integers(0, 5))
    columns = draw(st.lists(st.tuples(st.text(max_size=3), st.sampled_from(sorted(cells)))))
    series = [
        pd.Series(
            draw(st.lists(cells[dtype], min_size=rows, max_size=rows)), dtype=dtype, name=name
        )
        for name, dtype in columns
    ]
    frame = pd.concat(series, axis=1) if series else pd.DataFrame(index=range(rows))
    if rows and draw(st.booleans()):
        frame.index = pd.Index(draw(st.lists(st.text(), min_size=rows, max_size=rows)))
    return frame


@pytest.mark.slow
@settings(deadline=None)
@given(frame=frames())
def test_any_frame_comes_back(frame: Any, tmp_path_factory: Any) -> None:
    artifacts = tmp_path_factory.mktemp("frame") / "artifacts"
    assert_frame_equal(travel(frame, artifacts), frame, check_exact=True)
