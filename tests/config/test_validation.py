"""A config is built, and survives its travel as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest

from ml_experiments.config.validation import config_for, validate_config
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import ExperimentConfig
from tests.support.configs import Crop, Free, Optimizer, Shade, Train, TrainConfig, problems_of
from tests.support.torch_values import with_torch


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


@dataclasses.dataclass
class Sloppy:
    names: list[str] = None  # type: ignore[assignment]
    either: int | str = None  # type: ignore[assignment]
    crop: Crop = None  # type: ignore[assignment]


class Outer(pydantic.BaseModel):
    n: int = None  # type: ignore[assignment]
    parts: list[Sloppy] = [Sloppy(), Sloppy(names=["a"])]


@pytest.mark.parametrize(
    "given", [{}, {"n": None}, {"parts": [{"names": None}]}, {"parts": [{"either": 2}]}]
)
def test_none_as_a_default_needs_no_type_that_says_so(given: dict[str, Any]) -> None:
    def train(config: Outer) -> None: ...

    train.__annotations__["config"] = Outer
    config, config_json = validate_config(train, given)
    assert config_for(train, json.loads(json.dumps(config_json))) == config
    assert config.n is None
    assert config_json["parts"][0]["crop"] is None


def test_a_null_is_refused_where_it_is_no_default() -> None:
    def train(
        n: int = 3,
        names: list[str] = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> None: ...

    assert set(problems_of(train, {"n": None, "names": None})) == {"n"}
    assert set(problems_of(train, {"names": [None]})) == {"names.0"}


def test_a_default_of_another_type_is_named() -> None:
    def train(lr: float = "fast", n: int = 1) -> None: ...  # type: ignore[assignment]

    [problem] = problems_of(train, {}).values()
    assert problem.startswith("given 'fast': it must be a valid number")
    with pytest.raises(ConfigError, match="a default must be of its field's type"):
        validate_config(train, {})


def test_a_whole_number_as_the_default_of_a_float_is_no_change() -> None:
    class Rates(pydantic.BaseModel):
        lr: float | Literal["auto"] = 0

    def train(config: Rates) -> None: ...

    train.__annotations__["config"] = Rates
    assert validate_config(train, {})[1] == {"lr": 0}


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
        ({"a": np.ones(2)}, "a: a numpy.ndarray is not JSON"),
        ({"a": np.longdouble(1) / 3}, "a: a numpy.longdouble is not JSON"),
        ({"a": [np.datetime64("2026-01-02")]}, "a.0: a numpy.datetime64 is not JSON"),
        *with_torch(
            2,
            lambda torch: [
                ({"a": torch.empty((), device="meta")}, "a: a torch.Tensor is not JSON"),
            ],
        ),
        ({"a": Path("x")}, "a: a pathlib.PosixPath is not JSON"),
        ({"a": {1: 2}}, "a: the key 1 is not a string"),
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


def counted(**options: Any) -> tuple[type[pydantic.BaseModel], list[str]]:
    """Return a config class, and a list that grows with each call of its validator."""
    calls: list[str] = []

    class Counted(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(**options)  # type: ignore[typeddict-item]
        day: datetime.date
        free: Free = Free()

        @pydantic.model_validator(mode="after")
        def count(self) -> Counted:
            calls.append("built")
            return self

    return Counted, calls


@pytest.mark.parametrize(
    "options",
    [{}, {"extra": "forbid"}, {"extra": "allow"}, {"strict": True}, {"frozen": True}],
    ids=str,
)
@pytest.mark.parametrize("free", [{}, {"a": 1}])
def test_a_users_validator_runs_twice_for_a_client_and_once_where_the_run_executes(
    options: dict[str, Any], free: dict[str, Any]
) -> None:
    config_class, calls = counted(**options)

    class Counting:
        Config = config_class

        def __init__(self, config: Any) -> None: ...
        def run(self) -> None: ...

    config, config_json = validate_config(Counting, {"day": "2026-01-02", "free": free})
    assert len(calls) <= 2
    assert isinstance(config, config_class)
    calls.clear()
    assert config_for(Counting, json.loads(json.dumps(config_json))) == config
    assert len(calls) == 1


def test_a_dataclass_is_built_twice_for_a_client_and_once_where_the_run_executes() -> None:
    calls = []

    @dataclasses.dataclass
    class Counted:
        lr: float = 0.1

        def __post_init__(self) -> None:
            calls.append(self.lr)

    def train(config: Counted) -> None: ...

    train.__annotations__["config"] = Counted
    _, config_json = validate_config(train, {"lr": 1})
    assert calls == [1.0, 1.0]
    config_for(train, config_json)
    assert calls == [1.0, 1.0, 1.0]


def test_a_field_that_the_class_no_longer_has_is_refused_where_the_run_executes() -> None:
    def train(config: Optimizer) -> None: ...

    train.__annotations__["config"] = Optimizer
    with pytest.raises(ConfigError, match="momentum: unknown field"):
        config_for(train, {"lr": 0.5, "momentum": 0.9})


def train_typed(config: Optimizer) -> Any:
    return config


def crop_typed(config: Crop) -> Any:
    return config


def test_an_instance_of_the_experiments_own_config_is_taken() -> None:
    given = Optimizer(lr=0.5, name="sgd")
    config, config_json = validate_config(train_typed, given)
    assert config == config_for(train_typed, config_json) == given
    assert config_json == {"lr": 0.5, "name": "sgd"}
    config, config_json = validate_config(crop_typed, Crop(2, 3))
    assert config == config_for(crop_typed, config_json) == Crop(2, 3)
    full = TrainConfig.model_validate({"model_name": "m", "key": "hunter2", "either": {"width": 1}})
    assert validate_config(Train, full)[0] == full


def test_an_instance_that_was_never_validated_is_checked() -> None:
    with pytest.raises(ConfigError, match="width: given 'wide': it must be a valid integer"):
        validate_config(crop_typed, Crop("wide"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"lr: given 7\.0: it must be less than or equal to 1"):
        validate_config(train_typed, Optimizer().model_copy(update={"lr": 7.0}))


class OtherConfig(ExperimentConfig):
    lr: float = 1


class MoreOptions(Optimizer):
    momentum: float = 0.9


@pytest.mark.parametrize(
    ("experiment", "data", "message"),
    [
        (
            Train,
            OtherConfig(),
            r"Train is a [\w.]+\.TrainConfig, not a [\w.]+\.OtherConfig",
        ),
        (train_typed, MoreOptions(), r"is a [\w.]+\.Optimizer, not a [\w.]+\.MoreOptions"),
        (train_typed, Crop(1), r"is a [\w.]+\.Optimizer, not a [\w.]+\.Crop"),
        (Plain, OtherConfig(), r"of Plain is a dict, not a [\w.]+\.OtherConfig"),
    ],
)
def test_an_instance_of_another_class_is_refused_by_name(
    experiment: Any, data: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(experiment, data)


def test_an_instance_is_built_once_more_for_a_client() -> None:
    config_class, calls = counted(extra="forbid")

    class Counting(Plain):
        Config = config_class

    given = config_class(day=datetime.date(2026, 1, 2))
    calls.clear()
    validate_config(Counting, given)
    assert len(calls) <= 2


SCRIPT = """
from dataclasses import dataclass
from ml_experiments import Experiment, ExperimentConfig, run_experiment

class TrainConfig(ExperimentConfig):
    lr: float = 0.1

@dataclass
class CropConfig:
    width: int

class Train(Experiment[TrainConfig]):
    def run(self):
        return self.config.lr

def crop(config: CropConfig):
    return config.width

if __name__ == "__main__":
    print(run_experiment(Train, TrainConfig(lr=3)).results)
    print(run_experiment(crop, CropConfig(2)).results)
"""


def test_a_script_runs_its_own_class_with_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == "3.0\n2\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.float16("nan"), math.nan),
        (np.longdouble(0.5), 0.5),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(3), 3),
        (np.array(0.5, dtype=np.float32), 0.5),
        *with_torch(
            2,
            lambda torch: [
                (torch.tensor(3), 3),
                (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
                (torch.tensor(True), True),
                (torch.nn.Parameter(torch.tensor(0.5)), 0.5),
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scalar_of_numpy_or_torch_is_the_number_that_it_is(given: Any, expected: Any) -> None:
    data = {"a": given, "b": [given, (given,)], "c": {"d": given}}
    config, config_json = validate_config(Plain, data)
    expected_config = {"a": expected, "b": [expected, [expected]], "c": {"d": expected}}
    assert repr(config) == repr(expected_config)
    assert repr(config_for(Plain, json.loads(json.dumps(config_json)))) == repr(expected_config)

    class Typed(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)
        typed: type(expected)  # type: ignore[valid-type]
        untyped: Any

    def train(config: Typed) -> None: ...

    train.__annotations__["config"] = Typed
    built, _ = validate_config(train, {"typed": given, "untyped": [given]})
    assert repr((built.typed, built.untyped)) == repr((expected, [expected]))


def test_a_dataclass_may_hold_scalars_of_numpy() -> None:
    given = Crop(np.int64(2), np.array(3))  # type: ignore[arg-type]
    assert validate_config(crop_typed, given)[0] == Crop(2, 3)


def test_a_dict_that_stands_in_many_places_is_converted_once() -> None:
    shared: dict[str, Any] = {"lr": np.float32(0.5)}
    for _ in range(200):
        shared = {"left": shared, "right": shared}
    with pytest.raises(ConfigError, match=r"nested deeper|more than"):
        validate_config(Plain, shared)


def test_scalars_need_no_library_that_the_user_has_not_imported() -> None:
    code = """
import sys
from ml_experiments.config.validation import validate_config
class Plain:
    def run(self): ...
validate_config(Plain, {"a": 1.5, "b": ["x", None]})
assert not {"numpy", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
