"""The class of an experiment determines its config, at run time and for a type checker."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic
import pytest

from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import Experiment, ExperimentConfig
from tests.support.docstrings import run_example

ROOT = Path(__file__).parents[2]


class TrainConfig(ExperimentConfig):
    lr: float = 0.1


class LongConfig(TrainConfig):
    steps: int = 10


@dataclasses.dataclass
class CropConfig:
    width: int = 1


ModelT = TypeVar("ModelT")
ConfigT = TypeVar("ConfigT")


class Train(Experiment[TrainConfig]): ...


class TrainMore(Train): ...


class TrainLonger(Train):
    Config = LongConfig


class Nested(Experiment):
    class Config(ExperimentConfig):
        width: int = 1


class NestedInTyped(Experiment[Any]):
    Config = CropConfig


class Same(Experiment[TrainConfig]):
    Config = TrainConfig


class Base(Experiment[ConfigT], Generic[ModelT, ConfigT]): ...


class Untyped(Experiment[dict[str, Any]]): ...


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        (Train, TrainConfig),
        (TrainMore, TrainConfig),
        (TrainLonger, LongConfig),
        (Nested, Nested.Config),
        (NestedInTyped, CropConfig),
        (Same, TrainConfig),
        (Experiment[CropConfig], CropConfig),
        (Base[int, LongConfig], LongConfig),
        (Base, None),
        (Untyped, None),
        (Experiment, None),
    ],
    ids=str,
)
def test_the_config_of_a_class_is_its_type_parameter_or_its_nested_class(
    experiment: Any, config: type[Any] | None
) -> None:
    class Mine(experiment): ...

    class MyOwn(Mine): ...

    assert getattr(Mine, "Config", None) is config
    assert getattr(MyOwn, "Config", None) is config


def test_two_different_configs_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"parameter is TrainConfig, .* Config is LongConfig"):

        class Both(Experiment[TrainConfig]):
            Config = LongConfig

    with pytest.raises(ConfigError, match=r"parameter is TrainConfig, .* Config is CropConfig"):

        class Other(Train):
            Config = CropConfig


@pytest.mark.parametrize("parameter", [int, "TrainConfig", list[int]], ids=str)
def test_a_type_parameter_that_is_no_config_is_refused(parameter: Any) -> None:
    with pytest.raises(ConfigError, match="must be the class of the config"):

        class Wrong(Experiment[parameter]): ...


SNIPPET = """
from ml_experiments import Experiment, ExperimentConfig

class TrainConfig(ExperimentConfig):
    lr: float = 0.1

class Train(Experiment[TrainConfig]):
    def run(self) -> object:
        return self.config.{field}

class Plain(Experiment):
    def run(self) -> object:
        return self.config["any"], self.config.thing
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_fields_of_the_config(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    cache, known = tmp_path / "cache", ROOT / ".mypy_cache"
    if known.is_dir():  # of `make types`: without it, mypy reads all of pydantic
        shutil.copytree(known, cache)
    for field in ("lr", "lrr"):
        (tmp_path / f"{field}.py").write_text(SNIPPET.format(field=field))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, *tmp_path.glob("*.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert '"TrainConfig" has no attribute "lrr"' in done.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in done.stdout


def test_the_examples_in_the_docstrings_work(tmp_path: Path) -> None:
    assert run_example(ExperimentConfig, tmp_path) == ""
    assert run_example(Experiment, tmp_path) == "{'used': 'weights of tiny', 'lr': 0.01}\n"


def test_setup_does_nothing_and_run_has_to_be_there() -> None:
    experiment = Train(TrainConfig())
    assert experiment.setup() is None
    with pytest.raises(NotImplementedError, match=r"Train does not define run\(\)"):
        experiment.run()


def test_a_config_is_frozen_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrainConfig().lr = 1  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        TrainConfig(lrr=1)  # type: ignore[call-arg]
