"""A scalar without quotes is read as its field takes it; what could be two things is refused."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from ml_experiments.config.loading import load_config
from ml_experiments.config.scalars import LoadedConfig
from ml_experiments.config.validation import validate_config
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import Experiment, ExperimentConfig
from tests.support.configs import write_file


class Switch(enum.Enum):
    ON = "on"
    OFF = "off"


class Precision(enum.StrEnum):
    HALF = "16"
    FULL = "32"


class ModeConfig(ExperimentConfig):
    mode: Literal["on", "off", "auto"] = "auto"
    maybe: Literal["yes", "no"] | None = None
    switch: Switch = Switch.OFF
    precision: Precision = Precision.FULL
    bits: Literal["4", "8"] = "8"
    level: Literal[1, "1"] = "1"
    langs: list[str] = []
    pairs: dict[str, str] = {}
    flags: dict[str, bool] = {}
    name: str = ""
    folder: Path = Path("data")
    key: pydantic.SecretStr | None = None
    flag: bool = False
    either: bool | str = ""
    number: float | Literal["off"] = 0
    count: int | str = 0
    sizes: list[int] = []
    anything: Any = None
    options: dict[str, Any] = {}


class Mode(Experiment[ModeConfig]): ...


class Plain:
    def run(self) -> None: ...


def train(lr, name: str = "", **rest):  # type: ignore[no-untyped-def]
    return lr, name, rest


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mode=off", "off"),
        ("folder=no", Path("no")),
        ("mode=on", "on"),
        ("maybe=no", "no"),
        ("maybe=null", None),
        ("switch=on", Switch.ON),
        ("precision=16", Precision.HALF),
        ("bits=4", "4"),
        ("level=1", 1),
        ("langs=[no, en, On, true]", ["no", "en", "On", "true"]),
        ("pairs={no: yes, off: x}", {"no": "yes", "off": "x"}),
        ("flags={a: yes, b: off}", {"a": True, "b": False}),
        ("name=Yes", "Yes"),
        ("name=1,2,3", "1,2,3"),
        ("key=off", pydantic.SecretStr("off")),
        ("flag=on", True),
        ("either=off", False),
        ("number=off", "off"),
        ("number=2", 2.0),
        ("count=off", "off"),
        ("count=2", 2),
        ("sizes=[1,2]", [1, 2]),
        ("anything=off", False),
        ("anything='off'", "off"),
        ("options={a: no}", {"a": False}),
    ],
)
@pytest.mark.parametrize("source", ["override", "file"])
def test_a_scalar_is_what_its_field_takes(
    override: str, expected: Any, source: str, tmp_path: Path
) -> None:
    field, _, value = override.partition("=")
    if source == "override":
        loaded = load_config(None, [override])
    else:
        loaded = load_config(write_file(tmp_path, "c.yaml", f"{field}: {value}\n"), [])
    if field == "langs":
        with pytest.raises(ConfigError, match=r"langs\.3: given True: .*in quotes: langs='"):
            validate_config(Mode, loaded)
        loaded["langs"][3] = "true"
    config, _ = validate_config(Mode, loaded)
    assert getattr(config, field) == expected
    assert type(getattr(config, field)) is type(expected)


def test_a_config_that_was_changed_after_it_was_loaded_is_taken_as_it_is() -> None:
    loaded = load_config(None, ["mode=off", "langs=[no, en]", "pairs={a: no}"])
    loaded |= {"mode": "auto", "langs": ["de"], "pairs": None}
    with pytest.raises(ConfigError, match="pairs") as caught:
        validate_config(Mode, loaded)
    assert len(caught.value.problems) == 1
    loaded["pairs"] = {}
    assert validate_config(Mode, loaded)[0] == ModeConfig(mode="auto", langs=["de"])


@pytest.mark.parametrize(
    ("field", "value", "written", "in_python"),
    [
        ("mode", False, "mode='\"off\"'", "(as a string: 'off')"),
        ("switch", True, "switch='\"on\"'", "(as a string: 'on')"),
        ("precision", 16, "precision='\"16\"'", "(as a string: '16')"),
        ("bits", 4, "bits='\"4\"'", "(as a string: '4')"),
        ("name", False, "name='\"...\"'", ""),
        ("langs", [True], "langs='[\"...\"]'", ""),
        ("sizes", "1,2,3", "sizes=[1,2,3]", "(as a list: ['1,2,3'])"),
        ("langs", "no,en", "langs=[no,en]", "(as a list: ['no,en'])"),
        ("flag", "0.1,0.2", "a run takes one value of each field", "a run takes one value"),
        ("name", 7, "name='\"7\"'", "(as a string: '7')"),
        ("name", None, "name='\"null\"'", "(as a string: 'null')"),
    ],
)
def test_a_refused_value_says_how_to_write_it(
    field: str, value: Any, written: str, in_python: str
) -> None:
    loaded = LoadedConfig({field: value})
    loaded.unquoted = {}
    with pytest.raises(ConfigError) as caught:
        validate_config(Mode, loaded)
    assert written in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        validate_config(Mode, {field: value})
    assert in_python in str(caught.value)
    assert "'\"" not in str(caught.value)


@pytest.mark.parametrize(
    ("experiment", "override", "field"),
    [
        (Plain, "lr=1,2,3", "lr"),
        (Plain, "lr=1e-3, 1e-4", "lr"),
        (Plain, "opt={lr: [a, '1,2', b]}", None),
        (Plain, "model=bert,gpt2", None),
        (Plain, "size=1,a", None),
        (Plain, 'lr="1,2,3"', None),
        (Plain, "opt.lr=true,false", "opt.lr"),
        (train, "lr=1,2", "lr"),
        (Mode, "anything=1,2", "anything"),
        (Mode, "options.a=1,2", "options.a"),
    ],
)
def test_several_numbers_with_commas_are_not_taken_for_a_string(
    experiment: Callable[..., Any], override: str, field: str | None
) -> None:
    loaded = load_config(None, [override])
    if field is None:
        validate_config(experiment, loaded)
        return
    value = override.partition("=")[2]
    with pytest.raises(ConfigError) as caught:
        validate_config(experiment, loaded)
    assert f"write {field}=[{value}] for the list, {field}='\"{value}\"'" in str(caught.value)


def test_a_field_of_a_function_that_takes_any_is_not_taken_for_a_string() -> None:
    with pytest.raises(ConfigError, match=r"momentum: 0.8,0.9 can be a list or a string"):
        validate_config(train, load_config(None, ["lr=1", "momentum=0.8,0.9"]))


def test_an_unclear_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(Plain, load_config(None, ["password=12345,67890"]))
    assert "12345" not in str(caught.value)
