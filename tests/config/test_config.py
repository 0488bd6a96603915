"""From a file, overrides and a dict to an experiment's own config."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from ml_experiments.config.loading import load_config
from ml_experiments.config.schema import call_function
from ml_experiments.config.secret_values import secret_config_values
from ml_experiments.config.validation import config_for, validate_config
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import Experiment, ExperimentConfig

if TYPE_CHECKING:
    from decimal import Decimal


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=3e-4", {"optimizer": {"lr": 3e-4}}),
        ("lr=1e3", {"lr": 1000.0}),
        ("lr=.5", {"lr": 0.5}),
        ("lr=-.inf", {"lr": -math.inf}),
        ("steps=1_000", {"steps": 1000}),
        ("steps=-5", {"steps": -5}),
        ("mask=0x1F", {"mask": 31}),
        ("sizes=[1,2]", {"sizes": [1, 2]}),
        ("sizes=[1, [a, 'b c'], {x: null}]", {"sizes": [1, ["a", "b c"], {"x": None}]}),
        ("layer={kind: conv, size: 3}", {"layer": {"kind": "conv", "size": 3}}),
        ("names={1: a, on: b}", {"names": {"1": "a", "on": "b"}}),
        ("x=null", {"x": None}),
        ("x=true", {"x": True}),
        ("x=False", {"x": False}),
        ("x=off", {"x": False}),
        ("x=", {"x": ""}),
        ("x='7'", {"x": "7"}),
        ('x="null"', {"x": "null"}),
        ('prompt="draw #3"', {"prompt": "draw #3"}),
        ('prompt="tab\\there"', {"prompt": "tab\there"}),
        ("prompt=draw #3", {"prompt": "draw #3"}),
        ("prompt=a cat: fluffy", {"prompt": "a cat: fluffy"}),
        ("prompt=a=b", {"prompt": "a=b"}),
        ("prompt= two  spaces ", {"prompt": " two  spaces "}),
        ("prompt='tis the season", {"prompt": "'tis the season"}),
        ('prompt="yes" is what it said', {"prompt": '"yes" is what it said'}),
        ("prompt=*star* & |pipe > %", {"prompt": "*star* & |pipe > %"}),
        ("prompt=- dash", {"prompt": "- dash"}),
        ("prompt=???", {"prompt": "???"}),
        ("prompt=costs $5", {"prompt": "costs $5"}),
        ("prompt=\\${x}", {"prompt": "${x}"}),
        ("ratio=16:9", {"ratio": "16:9"}),
        ("day=2026-01-02", {"day": "2026-01-02"}),
        ("code=010", {"code": "010"}),
        ("version=1.2.3", {"version": "1.2.3"}),
        ("revision=12e4567", {"revision": "12e4567"}),
        ("path=C:\\new", {"path": "C:\\new"}),
    ],
)
def test_an_override_means_what_it_says(override: str, expected: Any) -> None:
    found = load_config(None, [override])
    assert found == expected
    assert json.dumps(found) == json.dumps(expected)


def test_later_wins_over_earlier_and_overrides_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "c.yaml", "a: {x: 1, y: 2}\nsizes: [1, 2, 3]\nname: file\n")
    base = {"a": {"z": 0, "x": 0}, "sizes": [9], "only_base": True}
    config = load_config(file, ["a.x=5", "a.x=6", "sizes.0=7", "new.deep.er=1"], base)
    assert config == {
        "a": {"x": 6, "y": 2, "z": 0},
        "sizes": [7, 2, 3],
        "name": "file",
        "only_base": True,
        "new": {"deep": {"er": 1}},
    }
    assert base == {"a": {"z": 0, "x": 0}, "sizes": [9], "only_base": True}
    assert load_config(file, ["a={q: 1}", "a.r=2"])["a"] == {"q": 1, "r": 2}
    assert load_config(file, ["a=null", "a.x=1"])["a"] == {"x": 1}


def test_interpolations_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", "abc")
    file = write(
        tmp_path,
        "c.yml",
        "lr: 0.1\nopt: {lr: '${lr}', same: '${.lr}'}\ncopy: ${opt}\nname: lr-${lr}\n"
        "token: ${oc.env:THE_TOKEN}\nother: ${oc.env:NOT_SET,fallback}\nlist: ['${lr}', '???']\n",
    )
    assert load_config(file, ["lr=0.5", "extra=${lr}"]) == {
        "lr": 0.5,
        "opt": {"lr": 0.5, "same": 0.5},
        "copy": {"lr": 0.5, "same": 0.5},
        "name": "lr-0.5",
        "token": "abc",
        "other": "fallback",
        "list": [0.5, "???"],
        "extra": 0.5,
    }


def test_every_interpolation_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    overrides = ["a.b=${oc.env:NOT_SET}", "c=[1,'${nope.x}']", "d=${no.such:1}", "e=${f}", "f=${e}"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    fields = [problem.partition(":")[0] for problem in caught.value.problems]
    assert fields == ["a.b", "c.1", "d", "e", "f"]
    assert "environment variable NOT_SET is not set" in caught.value.problems[0]
    for text in ("x=${", "x=${y", "x=${oc.env:}", "x={y: '${x}'}"):
        with pytest.raises(ConfigError, match="x"):
            load_config(None, [text])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr"], "'lr' is not an override; write it as key=value"),
        (["=3"], "not the name of a field"),
        (["a..b=3"], "not the name of a field"),
        (["--lr=3"], "not the name of a field"),
        (["a=[1"], "a=[1, line 1"),
        (["a={b: }}"], "a={b: }}, line 1"),
        (["a={x: 1, x: 2}"], "'x' is there twice"),
        (["a=" + "[" * 1000 + "]" * 1000], "nested deeper"),
        (["a=" + "1" * 5000], "4300 digits"),
        (["a=3", "a.b=4"], "a.b: a is 3, which has no fields"),
        (["a=[1]", "a.1=4"], "items: 0 to 0"),
        (["a=[]", "a.0=4"], "items: none, it is empty"),
        (["a=[1]", "a.x=4"], "'x' is no item of the list a"),
        (["a=[1]", "a.x.y=4"], "'x' is no item of the list a"),
        (["a=[&x [*x]]"], "nested deeper"),
        (["a=[!!binary aGk=]"], "a bytes is not JSON"),
        (["a" + ".a" * 2000 + "=1"], "not the name of a field"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


def test_a_wrong_override_does_not_show_a_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["api_key=[hunter2", "password=hunter2", "password.x=1"])
    assert len(caught.value.problems) == 2
    assert "hunter2" not in str(caught.value)


def test_all_wrong_overrides_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["a", "ok=1", "=b", "c=["])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", "a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is there twice"),
        ("c.yaml", "a:\n  b: 1\n  b: 2\n", "line 3, column 3: the key 'b' is there twice"),
        ("c.yaml", "a:\n\tb: 1\n", "line 2, column 1: a tab"),
        ("c.yaml", "a: [1, 2\n", "line 2"),
        ("c.yaml", "- 1\n- 2\n", "holds a list, not fields"),
        ("c.yaml", "just text", "holds a str, not fields"),
        ("c.yaml", "a: !!python/object:os.system x", "line 1"),
        ("c.yaml", "? [1, 2]\n: x\n", "a key is not text"),
        ("c.yaml", "a: !!binary aGk=\n", "a: a bytes is not JSON"),
        ("c.yaml", "a: 1\n---\nb: 2\n", "line 2"),
        ("c.yaml", "a: &x [*x]\n", "nested deeper"),
        ("c.yaml", "a: " + "[" * 1100, "nested deeper"),
        ("c.yaml", "a: " + "[" * 150 + "]" * 150, "nested deeper"),
        ("c.yaml", b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"),
        ("c.yaml", b"a: \x00\x01", "special characters"),
        ("c.json", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("c.json", '{"a": 1,\n "b" 2}', "line 2, column 6"),
        ("c.json", "", "line 1, column 1"),
        ("c.json", "[1]", "holds a list, not fields"),
        ("c.json", '{"a":' * 100_000, "nested deeper"),
        ("c.toml", "a = 1", "*.yaml, *.yml or *.json"),
        ("c", "a: 1", "*.yaml, *.yml or *.json"),
    ],
)
def test_a_bad_config_file_is_named_with_the_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        load_config(file, [])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="more than 1,000,000 values"):
        load_config(write(tmp_path, "c.yaml", "\n".join(lines)), [])


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml can't be read: No such file"):
        load_config(tmp_path / "missing.yaml", [])
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml can't be read: Is a directory"):
        load_config(tmp_path / "folder.yaml", [])
    if os.geteuid() != 0:
        file = write(tmp_path, "secret.yaml", "a: 1")
        file.chmod(0)
        with pytest.raises(ConfigError, match="Permission denied"):
            load_config(file, [])


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    yaml = "\ufeffa: 1e-3\n1: one\non: [yes, '2026', 2026-01-01]\nb: &x {c: 1}\nd: {<<: *x, e: 2}\n"
    assert load_config(write(tmp_path, "c.YAML", yaml), []) == {
        "a": 1e-3,
        "1": "one",
        "on": [True, "2026", "2026-01-01"],
        "b": {"c": 1},
        "d": {"c": 1, "e": 2},
    }
    assert load_config(write(tmp_path, "c.json", '{"a": [1e3, null, "x"]}'), []) == {
        "a": [1000.0, None, "x"]
    }
    assert load_config(write(tmp_path, "empty.yaml", "# nothing\n"), ["a=1"]) == {"a": 1}


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_override_raises_anything_but_a_config_error(text: str) -> None:
    for override in (text, f"a={text}", f"a=[{text}]", f"a={{x: {text}}}", f"a='{text}'"):
        with contextlib.suppress(ConfigError):
            load_config(None, [override])


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@settings(deadline=None)
@given(text=words.filter(lambda t: t.strip() and t.strip()[0] not in "[{'\"" and "${" not in t))
def test_text_survives(text: str) -> None:
    found = load_config(None, [f"prompt={text} x"])
    assert found == {"prompt": f"{text} x"}


@settings(deadline=None)
@given(content=st.binary() | st.text().map(str.encode))
def test_no_file_raises_anything_but_a_config_error(content: bytes, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("file")
    for name in ("c.yaml", "c.json"):
        with contextlib.suppress(ConfigError):
            assert isinstance(load_config(write(folder, name, content), []), dict)


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


def test_all_mistakes_are_reported_at_once_with_what_is_allowed() -> None:
    found = problems_of(
        Train,
        {
            "model_nam": "x",
            "steps": "abc",
            "optimizer": {"lr": -1, "name": "adm", "lrr": 3},
            "others": [{}, {"momentum": 1}],
            "by_name": {"first": {"lr": "fast"}},
            "crop": {"heigth": 3},
            "label": {"text": "a", "wieght": 1},
            "free": {"a": "q", "anything": 1},
            "shade": "drak",
            "sizes": [1, "two"],
        },
    )
    assert set(found) == {
        *("model_name", "model_nam", "steps", "optimizer.lr", "optimizer.name", "optimizer.lrr"),
        *("others.1.momentum", "by_name.first.lr", "crop.width", "crop.heigth", "label.wieght"),
        *("free.a", "shade", "sizes.1"),
    }
    assert found["model_name"] == "missing; allowed: str"
    assert found["model_nam"].startswith(
        "unknown field, given 'x' (did you mean 'model_name'?); known: batch, batchSize, by_name"
    )
    assert found["steps"] == (
        "given 'abc': it must be a valid integer, unable to parse string as an integer; "
        "allowed: int, >= 1, <= 100"
    )
    assert found["optimizer.lr"] == (
        "given -1: it must be greater than 0; allowed: float, > 0, <= 1"
    )
    assert "(did you mean 'adam'?)" in found["optimizer.name"]
    assert found["optimizer.lrr"] == (
        "unknown field, given 3 (did you mean 'lr'?); known: lr, name"
    )
    assert "did you mean 'height'" in found["crop.heigth"]
    assert "did you mean 'weight'" in found["label.wieght"]
    assert "did you mean 'dark'" in found["shade"]
    assert "allowed: 'dark' or 'light'" in found["shade"]


def test_unknown_fields_in_a_union_are_found_once() -> None:
    assert set(problems_of(Train, {"model_name": "m", "either": {"lrr": 1}})) == {"either.lrr"}
    config, _ = validate_config(Train, {"model_name": "m", "either": {"width": 3}})
    assert config.either == Crop(3)
    bad = problems_of(Train, {"model_name": "m", "either": {"width": "x", "height": 2}})
    assert "either.width" in bad
    assert "either.height" not in bad


def test_a_number_where_text_is_needed_says_how_to_quote_it() -> None:
    found = problems_of(Train, load_config(None, ["model_name=7"]))
    assert "in quotes: model_name='\"...\"'" in found["model_name"]
    config, _ = validate_config(Train, load_config(None, ['model_name="7"']))
    assert config.model_name == "7"


def test_secrets_are_not_in_messages() -> None:
    class Config(pydantic.BaseModel):
        key: pydantic.SecretStr
        api_key: int
        nested: dict[str, int] = {}
        wrong: int = 0

    class Private:
        def run(self) -> None: ...

    Private.Config = Config  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        validate_config(
            Private,
            {
                "key": 12345,
                "api_key": "hunter2",
                "password": "hunter2",
                "nested": {"token": "hunter2"},
                "wrong": [{"password": "hunter2"}],
            },
        )
    assert len(caught.value.problems) == 5
    assert "hunter2" not in str(caught.value)
    assert "12345" not in str(caught.value)


def test_a_config_comes_back_from_its_json() -> None:
    data = {
        "model_name": "m",
        "others": [{"lr": 0.5}],
        "either": {"lr": 0.25},
        "crop": {"width": 5},
        "label": {"text": "a", "weight": 2},
        "free": {"more": [1]},
        "shade": "light",
        "sizes": [3],
        "tags": ["b", "a", "d", "c"],
        "limit": math.nan,
        "day": "2026-01-02",
        "folder": "/data",
        "raw": "bytes",
        "wait": 90,
        "key": "hunter2",
        "batchSize": 4,
        "hz": 2,
    }
    config, config_json = validate_config(Train, data)
    travelled = json.loads(json.dumps(config_json, allow_nan=False))
    again = config_for(Train, travelled)
    assert again.model_copy(update={"limit": 0}) == config.model_copy(update={"limit": 0})
    assert math.isnan(again.limit)
    assert again.key.get_secret_value() == "hunter2"
    assert (again.batch, again.rate, again.wait.total_seconds()) == (4, 2.0, 90)
    assert type(again.either) is Optimizer
    assert config_json["steps"] == 10
    assert config_json["tags"] == ["a", "b", "c", "d"]
    assert config_json["batch"] == 4
    assert config_json["limit"] == {"$type": "float", "value": "nan"}
    assert "total" not in config_json


def test_fields_may_be_given_by_name_or_alias() -> None:
    for name in ("batch", "batchSize"):
        assert validate_config(Train, {"model_name": "m", name: 3})[0].batch == 3
    for name in ("rate", "rate_hz", "hz"):
        assert validate_config(Train, {"model_name": "m", name: 3})[0].rate == 3


def test_a_strict_config_takes_dates_and_enums_from_a_file() -> None:
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)
        day: datetime.date
        shade: Shade
        n: int

    def train(config: Strict) -> None: ...

    train.__annotations__["config"] = Strict
    config, config_json = validate_config(train, {"day": "2026-01-02", "shade": "dark", "n": 1})
    assert config_for(train, config_json) == config
    assert set(problems_of(train, {"day": "2026-01-02", "shade": "dark", "n": "1"})) >= {"n"}


def test_a_config_that_json_changes_is_refused() -> None:
    class Lossy(pydantic.BaseModel):
        n: int = 1

        @pydantic.field_serializer("n")
        def half(self, n: int) -> int:
            return n // 2

    class Unwritable(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        array: Any = None

    def one(config: Lossy) -> None: ...
    def two(config: Unwritable) -> None: ...

    one.__annotations__["config"], two.__annotations__["config"] = Lossy, Unwritable
    with pytest.raises(ConfigError, match="changes when it travels as JSON, in n"):
        validate_config(one, {"n": 8})
    with pytest.raises(ConfigError, match="can't travel as JSON"):
        validate_config(two, {"array": np.ones(2)})


class Plain:
    def __init__(self, config: Any) -> None: ...
    def run(self) -> None: ...


def test_a_class_without_config_gets_a_copy_of_the_dict() -> None:
    data = {"a": {"b": [1, None, "x", math.inf]}, "$type": "float", "n": 2**70}
    config, config_json = validate_config(Plain, data)
    assert config == data
    assert config["a"] is not data["a"]
    assert config_for(Plain, json.loads(json.dumps(config_json, allow_nan=False))) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"b": [1, object()]}}, "a.b.1: an object is not JSON"),
        ({"a": np.float64(1)}, "a: a numpy.float64 is not JSON"),
        ({"a": Path("x")}, "a: a pathlib.PosixPath is not JSON"),
        ({"a": {1: 2}}, "a: the key 1 is not text"),
        ({"a": {1, 2}}, "a: a set is not JSON"),
    ],
)
def test_a_plain_config_that_is_not_json_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(Plain, data)
    assert message in caught.value.problems[0]


def test_a_config_that_is_no_mapping_or_endless_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a list"):
        validate_config(Plain, [1])  # type: ignore[arg-type]
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(ConfigError, match="nested deeper"):
        validate_config(Plain, loop)


def with_dict(config):  # type: ignore[no-untyped-def]
    return config


def with_any_dict(cfg: dict[str, Any]) -> Any:
    return cfg


def with_model(settings: Optimizer) -> Any:
    return settings


def with_dataclass(config: Crop) -> Any:
    return config


def with_names(lr: Annotated[float, pydantic.Field(gt=0)], n: int = 2, *, copy="x"):  # type: ignore[no-untyped-def]
    return lr, n, copy


def with_odd_defaults(folder=Path("data"), sizes=(1, 2), shade=Shade.DARK):  # type: ignore[no-untyped-def]
    return folder, sizes, shade


def with_extras(a: int, **rest: Any) -> Any:
    return a, rest


def with_positions(a: int, b: int = 2, /, c: int = 3) -> Any:
    return a, b, c


def with_nothing() -> Any:
    return "ran"


def with_checker_only_type(amount: Decimal, n: int = 1) -> Any:
    return amount, n


@pytest.mark.parametrize(
    ("function", "data", "expected"),
    [
        (with_dict, {"a": 1}, {"a": 1}),
        (with_any_dict, {"a": 1}, {"a": 1}),
        (with_model, {"lr": "0.5"}, Optimizer(lr=0.5)),
        (with_dataclass, {"width": 3}, Crop(3, 1)),
        (with_names, {"lr": "3"}, (3.0, 2, "x")),
        (with_names, {"lr": 3, "copy": 5}, (3.0, 2, 5)),
        (with_odd_defaults, {"shade": "light"}, (Path("data"), (1, 2), Shade.LIGHT)),
        (with_extras, {"a": 1, "b": {"c": 2}}, (1, {"b": {"c": 2}})),
        (with_positions, {"a": 1, "c": 4}, (1, 2, 4)),
        (with_nothing, {}, "ran"),
        (with_checker_only_type, {"amount": "1.5"}, ("1.5", 1)),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_function_is_called_with_its_config(function: Any, data: Any, expected: Any) -> None:
    config, config_json = validate_config(function, data)
    assert call_function(function, config) == expected
    travelled = config_for(function, json.loads(json.dumps(config_json, allow_nan=False)))
    assert call_function(function, travelled) == expected


def test_a_functions_parameters_are_checked() -> None:
    found = problems_of(with_names, {"lr": 0, "m": 1})
    assert set(found) == {"lr", "m"}
    assert "known: copy, lr, n" in found["m"]
    assert set(problems_of(with_positions, {})) == {"a"}
    assert "known: none" in problems_of(with_nothing, {"a": 1})["a"]
    assert set(problems_of(with_dataclass, {"width": 1, "widht": 2})) == {"widht"}

    def with_stars(*args: int) -> None: ...
    def with_underscore(_a: int) -> None: ...

    for function in (with_stars, with_underscore):
        with pytest.raises(ConfigError, match="no way to fill its parameter"):
            validate_config(function, {})


def test_secrets_of_a_config_are_found() -> None:
    config, _ = validate_config(Train, {"model_name": "m", "key": "typed"})
    assert secret_config_values(config) == ("typed",)
    plain = {
        "api_key": "one",
        "nested": [{"hf_token": "two", "password": "three"}],
        "pad_token": "<pad>",
        "tokenizer": "gpt2",
        "max_tokens": 5,
        "token": "",
        "secret": {"value": "not a text of a field named like one"},
        "both": pydantic.SecretBytes(b"four"),
        "crop": Crop(1),
    }
    assert secret_config_values(plain) == ("four", "one", "three", "two")
    assert secret_config_values(
        validate_config(with_extras, {"a": 1, "wandb_api_key": "five"})[0]
    ) == ("five",)


def test_the_password_of_a_url_in_a_config_is_a_secret() -> None:
    config = {
        "data": "postgres://me:from-the-text@db:5432/digits",
        "typed": pydantic.PostgresDsn("postgres://me:from-the-type@db/digits"),
        "page": "https://example.org:8080/@me",
        "prompt": "a seven: red @ noon",
    }
    assert secret_config_values(config) == ("from-the-text", "from-the-type")
