"""The portable result contract: every kind goes out as strict JSON and files, and comes back."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import json
import math
import os
import subprocess
import sys
import types
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ml_experiments.errors import RunFolderError, UnportableResultError
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.typed_json import from_json
from ml_experiments.serialization.writing import encode


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "artifacts"
    folder.mkdir(parents=True)
    return folder


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


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass
class Metrics:
    loss: float
    points: list[Point]
    counts: dict[int, int]


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
        (torch.tensor(0.1), float(torch.tensor(0.1))),
        (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
        (torch.tensor(True), True),
        (torch.tensor(1j), 1j),
        (torch.Size([1, 2]), [1, 2]),
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


def structured_array() -> Any:
    return np.array([(1, b"a", [0.5, 1])], dtype=[("n", ">i4"), ("s", "S3"), ("v", "f4", (2,))])


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, np.nan, -np.inf], dtype=np.float32),
        np.zeros((2, 0, 3), dtype=np.int16),
        np.asfortranarray(np.arange(6).reshape(2, 3))[::-1],
        np.array(["a", "猫"]),
        np.array(["2026-01-02", "NaT"], dtype="datetime64[ns]"),
        np.array([1, 2], dtype=">u2"),
        np.array([1j], dtype=np.complex64),
        np.array([True, False]),
        np.arange(4, dtype=np.longdouble),
        structured_array(),
        np.matrix([[1, 2]]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_an_array_comes_back_from_a_file(array: Any, artifacts: Path) -> None:
    descriptor = travel({"x": array}, artifacts)["x"]
    assert descriptor == {
        "$type": "ndarray",
        "path": "artifacts/results/x.npy",
        "dtype": str(array.dtype),
        "shape": list(array.shape),
    }
    loaded = load_file(descriptor, artifacts.parent)
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.int64).reshape(2, 3).T,
        torch.tensor([0.1, math.nan], requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j], dtype=torch.complex32),
        torch.tensor([True]),
        torch.tensor([3], dtype=torch.uint16),
        torch.zeros(0, 3),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_a_tensor_comes_back_as_an_array(tensor: Any, artifacts: Path) -> None:
    descriptor = travel({"x": tensor}, artifacts)["x"]
    assert descriptor["$type"] == "tensor"
    assert descriptor["dtype"] == str(tensor.dtype).removeprefix("torch.")
    assert descriptor["shape"] == list(tensor.shape)
    loaded = load_file(descriptor, artifacts.parent)
    expected = tensor.detach().resolve_conj()
    np.testing.assert_array_equal(loaded, np.array(expected.tolist()).reshape(tensor.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_dtype_that_numpy_lacks_comes_back_exactly_in_a_wider_one(
    dtype: torch.dtype, artifacts: Path
) -> None:
    bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
    every = torch.arange(256).to(bits) if bits is torch.uint8 else torch.arange(-(2**15), 2**15)
    tensor = every.to(bits).view(dtype)
    loaded = travel_and_load(tensor, artifacts)
    assert loaded.dtype == np.float32
    numbers = ~torch.from_numpy(loaded).isnan()
    again = torch.from_numpy(loaded).to(dtype)
    assert numbers.sum() > 200
    assert torch.equal(again.view(bits)[numbers], tensor.view(bits)[numbers])


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
        *("I", "F", "I;16", "I;16B", "I;16L"),
    ],
)
def test_an_image_of_any_mode_comes_back_pixel_by_pixel(mode: str, artifacts: Path) -> None:
    blank = Image.new(mode, (5, 3))
    noise = np.random.default_rng(0).integers(0, 256, len(blank.tobytes()), dtype=np.uint8)
    if mode == "1":
        noise &= 0b11111000  # five pixels in a row: the rest of the byte is padding
    pixels = np.arange(15, dtype=np.float32).tobytes() if mode == "F" else noise.tobytes()
    image = Image.frombytes(mode, (5, 3), pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    loaded = travel_and_load(image, artifacts)
    assert (loaded.mode, loaded.size) == (image.mode, image.size)
    assert loaded.tobytes() == image.tobytes()
    if mode == "P":
        assert loaded.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_an_image_is_a_png_where_png_can_hold_it(artifacts: Path) -> None:
    descriptor = travel({"sample": Image.new("RGB", (2, 1), "red")}, artifacts)["sample"]
    assert descriptor == {
        "$type": "image",
        "path": "artifacts/results/sample.png",
        "mode": "RGB",
        "size": [2, 1],
    }
    assert (artifacts / "results/sample.png").read_bytes().startswith(b"\x89PNG")


def test_images_with_a_palette_with_alpha_or_without_pixels_come_back(artifacts: Path) -> None:
    with_alpha = Image.new("PA", (2, 2))
    with_alpha.putpalette([255, 0, 0, 0, 255, 0])
    loaded = travel_and_load(with_alpha, artifacts)
    assert loaded.tobytes() == with_alpha.convert("RGBA").tobytes()
    assert travel_and_load(Image.new("RGB", (0, 3)), artifacts).size == (0, 3)


def test_large_bytes_come_back_from_a_file(artifacts: Path) -> None:
    content = os.urandom(5000)
    descriptor = travel({"blob": content}, artifacts)["blob"]
    assert descriptor == {
        "$type": "bytes",
        "path": "artifacts/results/blob.bin",
        "size_bytes": 5000,
    }
    assert load_file(descriptor, artifacts.parent) == content


def test_large_bytes_stay_inline_where_no_file_can_be_written() -> None:
    content = os.urandom(5000)
    assert from_json(to_json(content)) == content


def test_a_path_below_the_artifacts_becomes_a_file_of_the_run(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = artifacts / "samples" / "first.txt"
    file.parent.mkdir()
    file.write_text("hello")
    monkeypatch.chdir(artifacts)
    expected = {"$type": "file", "path": "artifacts/samples/first.txt", "size_bytes": 5}
    assert travel([file, Path("samples/first.txt")], artifacts) == [expected, expected]
    folder = travel(file.parent, artifacts)
    assert folder == {"$type": "folder", "path": "artifacts/samples"}
    moved = artifacts.parent.rename(artifacts.parent.with_name("elsewhere"))
    assert load_file(expected, moved).read_text() == "hello"
    assert load_file(folder, moved) == moved / "artifacts/samples"


def test_a_missing_path_below_the_artifacts_is_a_problem(artifacts: Path) -> None:
    encoded, problems = encode({"model": artifacts / "model.pt"}, artifacts, "results")
    assert encoded["model"]["$type"] == "unportable"
    assert "results.model: " in problems[0]
    assert "no such file" in problems[0]


def test_a_link_out_of_the_artifacts_is_a_plain_path(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("x")
    (artifacts / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert travel(artifacts / "link.txt", artifacts) == artifacts / "link.txt"


def generator() -> Any:
    yield 1


class NotPlain:
    pass


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NotPlain(), "only plain data"),
        (len, "only plain data"),
        (int, "only plain data"),
        (torch.float32, "only plain data"),
        (generator(), "return list(...)"),
        (iter([1]), "return list(...)"),
        (map(str, [1]), "return list(...)"),
        (np.array([NotPlain()], dtype=object), "needs pickle"),
        (np.array([1, "a"], dtype=object), "needs pickle"),
        (np.array(["a"], dtype=np.dtypes.StringDType()), ".astype(str)"),
        (np.ma.masked_array([1, 2], [True, False]), "mask"),
        (np.longdouble(1) / 3, "wider"),
        (torch.eye(2).to_sparse(), ".to_dense()"),
        (torch.eye(2).to_sparse_csr(), ".to_dense()"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), ".dequantize()"),
        (torch.empty((), device="meta"), "can't be read"),
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
        {"$type": "unportable", "type": f"{__name__}.NotPlain", "path": "results.a[0]"}
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


def nested(levels: int, wrap: Any) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = wrap(value)
    return value


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


def test_file_names_are_safe_readable_and_unique(artifacts: Path) -> None:
    keys = [
        *(
            "../../x",
            "/etc/passwd",
            "..",
            "",
            "a/b",
            "a\\b",
            "a b",
            "A/B",
            "a\0b",
            "con",
            "x" * 500,
        ),
        *("猫", "é", "e\u0301", "\ud800", "a\nb", "-", ".hidden", "COM1", 5, None, ("t", 1)),
    ]
    value = {key: np.full(2, i) for i, key in enumerate(keys)}
    found = travel(value, artifacts)
    paths = [descriptor["path"] for descriptor in found.values()]
    assert len({path.casefold() for path in paths}) == len(keys)
    for i, descriptor in enumerate(found.values()):
        name = Path(descriptor["path"]).name
        assert descriptor["path"] == f"artifacts/results/{name}"
        assert not name.startswith(".")
        assert len(name.encode()) <= 120
        assert load_file(descriptor, artifacts.parent)[0] == i
    assert sorted(p.name for p in artifacts.parent.rglob("*") if p.is_file()) == sorted(
        Path(path).name for path in paths
    )
    assert "artifacts/results/a_b.npy" in paths


def test_file_names_follow_the_place_in_the_results(artifacts: Path) -> None:
    value = {"layers": [{"weight": np.ones(1)}], "a": {"b": torch.ones(1)}}
    travel(value, artifacts)
    assert sorted(p.name for p in (artifacts / "results").iterdir()) == [
        "a.b.npy",
        "layers.0.weight.npy",
    ]
    assert travel(np.ones(1), artifacts)["path"] == "artifacts/results/value.npy"


def test_files_of_the_experiment_are_never_overwritten(artifacts: Path) -> None:
    (artifacts / "results").mkdir()
    (artifacts / "results" / "x.npy").write_text("mine")
    descriptor = travel({"x": np.ones(1)}, artifacts)["x"]
    assert descriptor["path"] == "artifacts/results/x-2.npy"
    assert (artifacts / "results" / "x.npy").read_text() == "mine"


def test_a_name_may_hold_a_folder(artifacts: Path) -> None:
    encoded, problems = encode({"grad": np.ones(1), "bad": len}, artifacts, "metrics/12")
    assert encoded["grad"]["path"] == "artifacts/metrics/12/grad.npy"
    assert problems[0].startswith("metrics/12.bad: ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    "value",
    ["np.ones(100_000)", "bytes(1_000_000)", "Image.effect_noise((1000, 1000), 90)", "frame"],
)
def test_a_full_disk_is_an_error_and_leaves_no_file(value: str, artifacts: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd
from PIL import Image
from ml_experiments.serialization.writing import encode
frame = pd.DataFrame({{"x": np.arange(100_000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    encode({{"x": {value}}}, Path(sys.argv[1]), "results")
except OSError as e:
    print("surfaced", type(e).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifacts)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("surfaced")
    assert list((artifacts / "results").iterdir()) == []


def test_artifacts_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"Not a directory|exists"):
        encode({"x": np.ones(1)}, tmp_path / "artifacts", "results")


@pytest.mark.parametrize(
    "path",
    ["../secret.npy", "artifacts/../../secret.npy", "/etc/passwd", "", None, 5, "a\\..\\b", "C:/x"],
)
def test_a_descriptor_cannot_lead_out_of_the_run_folder(path: Any, artifacts: Path) -> None:
    np.save(artifacts.parent.parent / "secret.npy", np.ones(1))
    with pytest.raises(RunFolderError, match=r"not a path inside|has no path"):
        load_file({"$type": "ndarray", "path": path}, artifacts.parent)


@pytest.mark.parametrize("kind", ["ndarray", "file", "bytes"])
def test_a_link_cannot_lead_out_of_the_run_folder(kind: str, artifacts: Path) -> None:
    np.save(artifacts.parent.parent / "secret.npy", np.ones(1))
    (artifacts / "x.npy").symlink_to(artifacts.parent.parent / "secret.npy")
    (artifacts / "up").symlink_to(artifacts.parent.parent)
    for path in ("artifacts/x.npy", "artifacts/up/secret.npy"):
        with pytest.raises(RunFolderError, match="leaves the run folder"):
            load_file({"$type": kind, "path": path, "size_bytes": 136}, artifacts.parent)


def test_a_pickle_is_never_loaded(artifacts: Path) -> None:
    np.save(artifacts / "x.npy", np.array([NotPlain()], dtype=object), allow_pickle=True)
    with pytest.raises(RunFolderError, match="damaged"):
        load_file({"$type": "ndarray", "path": "artifacts/x.npy"}, artifacts.parent)


@pytest.mark.parametrize(
    "value",
    [np.ones(100), Image.effect_noise((20, 20), 50), bytes(5000), pd.DataFrame({"a": [1, 2, 3]})],
    ids=["array", "image", "bytes", "table"],
)
def test_a_damaged_file_is_an_error_that_names_it(value: Any, artifacts: Path) -> None:
    descriptor = travel({"x": value}, artifacts)["x"]
    file = artifacts.parent / descriptor["path"]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RunFolderError, match="damaged") as caught:
        load_file(descriptor, artifacts.parent)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(RunFolderError, match="missing"):
        load_file(descriptor, artifacts.parent)


def test_loading_without_a_run_folder_or_a_descriptor_says_so(artifacts: Path) -> None:
    descriptor = travel(np.ones(1), artifacts)
    with pytest.raises(RunFolderError, match="not on this machine"):
        load_file(descriptor, None)
    for wrong in ({}, {"$type": "unportable"}, {"$type": ["x"]}, {"a": 1}):
        with pytest.raises(RunFolderError, match="not the descriptor of a file"):
            load_file(wrong, artifacts.parent)


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


def test_to_json_refuses_what_needs_a_file() -> None:
    with pytest.raises(UnportableResultError) as caught:
        to_json({"a": np.ones(2), "b": NotPlain(), "c": 1})
    assert [p.partition(":")[0] for p in caught.value.problems] == ["results.a", "results.b"]


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
