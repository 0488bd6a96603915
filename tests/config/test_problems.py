"""Messages about an invalid config name what is allowed, and hold no secrets."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

from ml_experiments import Experiment, ExperimentConfig
from ml_experiments.config.loading import load_config
from ml_experiments.config.validation import validate_config
from ml_experiments.errors import ConfigError
from tests.support.configs import Crop, Train, problems_of


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


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"momentum": 1}, "optimizer.momentum"),
        ({"optimizer__momentum": 1}, "optimizer.momentum"),
        ({"optimizer/momentum": 1}, "optimizer.momentum"),
        ({"config": {"lr": 1}}, "lr"),
    ],
)
def test_a_field_of_another_level_is_named(given: dict[str, Any], meant: str) -> None:
    class Optimizer(ExperimentConfig):
        momentum: float = 0.9

    class NestedConfig(ExperimentConfig):
        lr: float = 1.0
        optimizer: Optimizer = Optimizer()

    class Nested(Experiment[NestedConfig]):
        def run(self) -> None: ...

    (found,) = problems_of(Nested, given).values()
    assert f"(did you mean {meant!r}?)" in found


def test_unknown_fields_in_a_union_are_found_once() -> None:
    assert set(problems_of(Train, {"model_name": "m", "either": {"lrr": 1}})) == {"either.lrr"}
    config, _ = validate_config(Train, {"model_name": "m", "either": {"width": 3}})
    assert config.either == Crop(3)
    bad = problems_of(Train, {"model_name": "m", "either": {"width": "x", "height": 2}})
    assert "either.width" in bad
    assert "either.height" not in bad


def test_a_number_where_a_string_is_needed_says_how_to_quote_it() -> None:
    found = problems_of(Train, load_config(None, ["model_name=7"]))
    assert "in quotes: model_name='\"7\"'" in found["model_name"]
    config, _ = validate_config(Train, load_config(None, ['model_name="7"']))
    assert config.model_name == "7"
    found = problems_of(Train, load_config(None, ["model_name={index}"]))
    assert "in quotes: model_name='\"...\"'" in found["model_name"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("folder=1", "it must be a path (as a string, in quotes: folder='\"1\"')"),
        ("day=today", "(as in 2026-11-25)"),
        ("day=20261125", "(as in 2026-11-25)"),
        ("moment=x", "(as in 2026-11-25T14:00)"),
        ("limit=1h", "(as in 90 for seconds, PT1H30M or 01:30:00)"),
        ("sizes=a", "it must be a dict (as in sizes.KEY=VALUE)"),
        ("shape.side=3", "it has no 'kind', which tells which of several it is (as in shape.kind="),
        ("shape.kind=c", "'kind' must be one of 'square', 'circle'"),
        ("title=[a]", "in quotes: title='\"...\"'"),
    ],
)
def test_a_refused_value_says_how_one_is_written(override: str, hint: str) -> None:
    class Square(ExperimentConfig):
        kind: Literal["square"] = "square"
        side: int = 1

    class Circle(ExperimentConfig):
        kind: Literal["circle"] = "circle"

    class AllConfig(ExperimentConfig):
        folder: Path = Path()
        day: datetime.date | None = None
        moment: datetime.datetime | None = None
        limit: datetime.timedelta | None = None
        sizes: dict[str, int] = {}
        shape: Annotated[Square | Circle, pydantic.Field(discriminator="kind")] = Square()
        title: str = ""

    class All(Experiment[AllConfig]):
        def run(self) -> None: ...

    (found,) = problems_of(All, load_config(None, [override])).values()
    assert hint in found


def test_a_validator_of_the_whole_config_may_name_the_field() -> None:
    class Ordered:
        class Config(pydantic.BaseModel):
            low: int = 1
            high: int = 0

            @pydantic.model_validator(mode="after")
            def _check(self) -> Any:
                raise ValueError("high: it must be above low" if self.low else "ratio: it is odd")

        def __init__(self, config: Config) -> None: ...

    assert problems_of(Ordered, {}) == {"high": "it must be above low"}
    assert "ratio: it is odd" in problems_of(Ordered, {"low": 0})["config"]


def test_secrets_are_not_in_messages() -> None:
    class Config(pydantic.BaseModel):
        key: pydantic.SecretStr
        api_key: int
        nested: dict[str, int] = {}
        wrong: int = 0
        hf_token: int = 0

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
                "hf_token": "12345,67890",
            },
        )
    assert len(caught.value.problems) == 6
    assert "hunter2" not in str(caught.value)
    assert "12345" not in str(caught.value)
