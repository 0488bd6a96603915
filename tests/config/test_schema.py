"""What a function takes as its config."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import pydantic
import pytest

from ml_experiments.config.schema import call_function
from ml_experiments.config.validation import config_for, validate_config
from ml_experiments.errors import ConfigError

if TYPE_CHECKING:
    from decimal import Decimal
from tests.support.configs import Crop, Optimizer, Shade, problems_of

T = TypeVar("T")


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


class Annotated1:
    def __init__(self, settings: Crop) -> None: ...


class Optional1:
    def __init__(self, config: Optimizer | None = None) -> None: ...


class WithDict:
    def __init__(self, config: dict[str, Any]) -> None: ...


class WithCheckerOnlyType:
    def __init__(self, config: Decimal) -> None: ...


class WithAnnotated:
    def __init__(self, config: Annotated[Crop, "how to cut"]) -> None: ...


class WithProse:
    def __init__(self, config: "all that it needs") -> None: ...  # type: ignore[valid-type]  # noqa: F722


class Pair(pydantic.BaseModel, Generic[T]):
    width: T


class WithGeneric:
    def __init__(self, config: Pair[int]) -> None: ...


class WithAnything:
    def __init__(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        (Annotated1, Crop(3, 1)),
        (Optional1, None),
        (WithDict, {"width": 3}),
        (WithCheckerOnlyType, {"width": 3}),
        (WithAnnotated, Crop(3, 1)),
        (WithProse, {"width": 3}),
        (WithGeneric, Pair[int](width=3)),
        (WithAnything, {"width": 3}),
        (dict, {"width": 3}),
    ],
)
def test_a_class_takes_what_its_parameter_is_annotated_with(experiment: Any, expected: Any) -> None:
    if expected is None:
        assert set(problems_of(experiment, {"width": 3})) == {"width"}
    else:
        assert validate_config(experiment, {"width": 3})[0] == expected


def test_what_no_config_can_be_is_refused() -> None:
    class Class:
        def __init__(self, config: argparse.Namespace) -> None: ...

    def function(cfg: Path) -> None: ...

    for experiment, annotation in ((Class, argparse.Namespace), (function, Path)):
        with pytest.raises(ConfigError, match=f"takes {annotation.__name__} as its config"):
            validate_config(experiment, {})


def test_a_function_of_one_value_is_told_how_it_gets_them_all() -> None:
    def main(args):  # type: ignore[no-untyped-def]
        return args.lr

    problems = problems_of(main, {"lr": 3})
    assert "call the parameter config" in problems["args"]
    assert set(problems) == {"args", "lr"}
