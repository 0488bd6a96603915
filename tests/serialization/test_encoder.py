"""What can't be represented is named by its place, and the rest is kept."""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import pytest

from ml_experiments.errors import UnportableResultError
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.typed_json import from_json
from ml_experiments.serialization.writing import encode
from tests.support.torch_values import with_torch
from tests.support.values import Color, Metrics, NotPlain, generator, kind, nested, travel


def test_large_bytes_stay_inline_where_no_file_can_be_written() -> None:
    content = os.urandom(5000)
    assert from_json(to_json(content)) == content


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NotPlain(), "only plain data"),
        (len, "only plain data"),
        (int, "only plain data"),
        (generator(), "return list(...)"),
        (iter([1]), "return list(...)"),
        (map(str, [1]), "return list(...)"),
        (np.array([NotPlain()], dtype=object), "needs pickle"),
        (np.array([1, "a"], dtype=object), "needs pickle"),
        (np.array(["a"], dtype=np.dtypes.StringDType()), ".astype(str)"),
        (np.ma.masked_array([1, 2], [True, False]), "mask"),
        (np.longdouble(1) / 3, "wider"),
        *with_torch(
            2,
            lambda torch: [
                (torch.float32, "only plain data"),
                (torch.eye(2).to_sparse(), ".to_dense()"),
                (torch.eye(2).to_sparse_csr(), ".to_dense()"),
                (torch.empty(2, device="meta"), "meta"),
                (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), ".dequantize()"),
                (torch.empty((), device="meta"), "can't be read"),
            ],
        ),
        (pydantic.SecretStr("hunter2"), "secret"),
        (pd.Series([pd.Period("2026-01")]), ".astype(str)"),
        (pd.Series([NotPlain()]), "only plain data"),
        ({1, NotPlain()}, "only plain data"),
    ],
    ids=kind,
)
def test_what_cannot_be_represented_is_named_and_the_rest_is_kept(
    value: Any, reason: str, artifacts: Path
) -> None:
    results = {"good": 1, "layers": [0, {"weight": value}], "more": np.ones(2)}
    encoded, problems = encode(results, artifacts, "results")
    assert len(problems) == 1
    assert problems[0].startswith("results.layers[1].weight")
    assert reason in problems[0]
    assert "hunter2" not in problems[0]
    decoded = from_json(json.loads(json.dumps(encoded, allow_nan=False)))
    assert decoded["good"] == 1
    np.testing.assert_array_equal(load_file(decoded["more"], artifacts.parent), np.ones(2))
    assert '"unportable"' in json.dumps(encoded["layers"][1]["weight"])


def test_an_unportable_value_is_described_in_its_place(artifacts: Path) -> None:
    encoded, _ = encode({"a": [NotPlain()]}, artifacts, "results")
    assert encoded["a"] == [
        {"$type": "unportable", "type": f"{NotPlain.__module__}.NotPlain", "path": "results.a[0]"}
    ]
    assert from_json(to_json(from_json(encoded))) == encoded


def test_every_problem_is_reported(artifacts: Path) -> None:
    _, problems = encode(
        {"a b": NotPlain(), "c": [len, 1, {"d": generator()}], 5: int}, artifacts, "out"
    )
    assert [problem.partition(": ")[0] for problem in problems] == [
        "out['a b']",
        "out.c[0]",
        "out.c[2].d",
        "out[5]",
    ]


def test_a_value_that_contains_itself_is_a_problem(artifacts: Path) -> None:
    loop: dict[str, Any] = {"list": [1]}
    loop["list"].append(loop)
    node = Metrics(1.0, [], {})
    node.points = [node]  # type: ignore[list-item]
    encoded, problems = encode({"loop": loop, "node": node, "ok": [1]}, artifacts, "results")
    assert [p.partition(":")[0] for p in problems] == [
        "results.loop.list[1]",
        "results.node.points[0]",
    ]
    assert "results.loop again" in problems[0]
    assert encoded["ok"] == [1]
    assert encoded["loop"]["list"][0] == 1


def test_a_value_that_stands_twice_is_written_twice(artifacts: Path) -> None:
    shared = [1, {"a": 2}]
    assert travel([shared, shared, {"x": shared}], artifacts) == [shared, shared, {"x": shared}]


@pytest.mark.parametrize(
    ("levels", "wrap"),
    [
        (199, lambda value: [value]),
        (199, lambda value: {"k": value}),
        (60, lambda value: {1: value}),
        (190, lambda value: Metrics(value, [], {})),
    ],
    ids=["lists", "dicts", "int keys", "dataclasses"],
)
def test_deep_nesting_comes_back(levels: int, wrap: Any, artifacts: Path) -> None:
    found = travel(nested(levels, wrap), artifacts)
    json.dumps(to_json(found), indent=2)
    depth = 0
    while found != "deep":
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        depth += 1
    assert depth == levels


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: {1: v}])
def test_too_deep_nesting_is_a_problem_with_a_short_path(wrap: Any, artifacts: Path) -> None:
    encoded, problems = encode([nested(100_000, wrap), "kept"], artifacts, "results")
    assert len(problems) == 1
    assert "nested deeper" in problems[0]
    assert len(problems[0]) < 400
    assert encoded[1] == "kept"
    assert from_json(json.loads(json.dumps(encoded)))[1] == "kept"


def test_a_value_that_grows_without_end_is_cut_short(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.serialization.encoder.MAX_VALUES", 1000)
    value: Any = [1]
    for _ in range(100):
        value = [value, value]
    encoded, problems = encode({"first": 1, "huge": value}, artifacts, "results")
    assert len(problems) == 1
    assert "more than 1,000 values" in problems[0]
    assert encoded["first"] == 1


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: [v, v],
        lambda v: (v, v),
        lambda v: {"a": v, "b": v},
        lambda v: [{0, 1}, v, v],
        lambda v: Pair(v, v),
    ],
    ids=["lists", "tuples", "dicts", "sets", "dataclasses"],
)
def test_what_is_shared_again_and_again_is_counted_before_it_is_encoded(
    wrap: Any, artifacts: Path
) -> None:
    value: Any = 1
    for _ in range(60):
        value = wrap(value)
    _, problems = encode({"kept": value}, artifacts, "results")
    assert all("more than 10,000,000 values" in problem for problem in problems)
    assert problems


class Endless(collections.abc.Sequence[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return index


class EndlessTree(collections.abc.Sequence[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if index > 1:
            raise IndexError
        return EndlessTree()


class EndlessDict(dict[Any, Any]):
    def items(self) -> Any:
        return ((n, n) for n in itertools.count())


class EndlessList(list[Any]):
    def __iter__(self) -> Any:
        return itertools.count()


@pytest.mark.parametrize(
    "value",
    [Endless(), EndlessTree(), EndlessDict(a=1), EndlessList([1])],
    ids=lambda v: type(v).__name__,
)
def test_a_container_without_end_is_a_problem(value: Any, artifacts: Path) -> None:
    _, problems = encode(value, artifacts, "results")
    assert "yields more" in problems[0] or "nested deeper" in problems[0]
    assert len(problems) < 2000


def test_an_array_may_be_longer_than_a_list(artifacts: Path) -> None:
    values = np.zeros(10_000_001, dtype=bool)
    encoded, problems = encode(values, artifacts, "results")
    assert (encoded["shape"], problems) == ([10_000_001], ())


def test_an_array_larger_than_the_disk_does_not_fill_it(artifacts: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        encode(np.broadcast_to(np.float32(0), (10**8, 10**8)), artifacts, "results")
    assert raised.value.errno == errno.ENOSPC
    assert not list(artifacts.rglob("*"))


class Squares(collections.abc.Sequence[int]):
    """Makes its members on demand."""

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: Any) -> Any:
        return index**2


@pytest.mark.parametrize(
    "value",
    [
        range(10**12),
        range(10**20),
        Squares(),
        dict.fromkeys([1]) | {2: range(10**12)},
        pd.RangeIndex(10**12),
        collections.deque([range(10**12)]),
    ],
    ids=kind,
)
def test_a_container_is_counted_before_it_is_listed(value: Any, artifacts: Path) -> None:
    encoded, problems = encode({"first": 1, "huge": [value]}, artifacts, "results")
    assert len(problems) == 1
    assert problems[0].startswith("results.huge[0]")
    assert "values, more than the 10,000,000 that results may hold" in problems[0]
    assert encoded["first"] == 1


def test_keys_that_become_one_are_a_problem(artifacts: Path) -> None:
    encoded, problems = encode({"a": {Color.RED: 1, "red": 2}}, artifacts, "results")
    assert problems == ("results.a.red: two keys become this one",)
    assert encoded == {"a": {"red": 1}}


def test_a_key_that_cannot_be_represented_is_a_problem(artifacts: Path) -> None:
    key = NotPlain()
    encoded, problems = encode({"a": {key: 1, "b": 2}}, artifacts, "results")
    assert len(problems) == 1
    assert problems[0].startswith("results.a: a key of type")
    assert sorted(encoded["a"].values()) == [1, 2]


def test_to_json_refuses_what_needs_a_file() -> None:
    with pytest.raises(UnportableResultError) as caught:
        to_json({"a": np.ones(2), "b": NotPlain(), "c": 1})
    assert [p.partition(":")[0] for p in caught.value.problems] == ["results.a", "results.b"]
