"""What an experiment is: `Experiment` and `ExperimentConfig`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import pydantic
from typing_extensions import TypeVar

from ml_experiments.errors import ConfigError

ConfigT = TypeVar("ConfigT", default=Any)


class ExperimentConfig(pydantic.BaseModel):
    """Base of an experiment's config: unknown fields are errors, and values don't change later.

    A subclass is a pydantic model, with all that pydantic offers for types, bounds and defaults.

    Example:
        ```python
        import pydantic
        from ml_experiments import ExperimentConfig

        class TrainConfig(ExperimentConfig):
            model_name: str
            lr: float = pydantic.Field(1e-3, gt=0, le=1)
        ```
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Experiment(Generic[ConfigT]):
    """Base class of experiments: a config that is checked before the run, and a warm `setup()`.

    Any class with `__init__(config)` and `run()` is an experiment, also without this base. With
    it, the config is checked before anything starts, `self.config` is typed, and what `setup()`
    loads can be kept for later runs.

    Example:
        ```python
        from ml_experiments import Experiment, ExperimentConfig, run_experiment

        class TrainConfig(ExperimentConfig):
            model_name: str
            lr: float = 1e-3

        class Train(Experiment[TrainConfig]):
            setup_fields = ("model_name",)

            def setup(self):
                self.weights = f"weights of {self.config.model_name}"

            def run(self):
                return {"used": self.weights, "lr": self.config.lr}

        if __name__ == "__main__":
            print(run_experiment(Train, TrainConfig(model_name="tiny", lr=0.01)).results)
        ```

    Attributes:
        Config: The class of the config, a pydantic model or a dataclass. It is the type
            parameter, or a class `Config` inside the experiment; without either, the config is
            a dict.
        setup_fields: The fields of the config that `setup()` depends on; while their values stay
            the same, later runs use what it loaded, in the same process. If unset, each run has
            a process of its own, and loads what it needs. A class that defines `__init__` is
            always assumed to depend on every field.
        preload: Modules that runs import inside methods, such as `torch`: they are imported once
            for many runs, and only where runs execute.
    """

    Config: ClassVar[type[Any]]
    setup_fields: ClassVar[tuple[str, ...] | None] = None
    preload: ClassVar[tuple[str, ...]] = ()
    # the type argument that a base class gave; a type variable until one does
    _config_type: ClassVar[Any] = ConfigT  # type: ignore[misc]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        given, nested = _type_argument(cls), cls.__dict__.get("Config")
        if given is not None:
            cls._config_type = given
        expected = cls._config_type
        if nested is None:
            if is_config_class(given):
                cls.Config = given
        elif not (
            isinstance(expected, typing.TypeVar)
            or nested is expected
            # the class narrows what its base takes
            or (given is None and _is_subclass(nested, expected))
        ):
            raise ConfigError(
                f"{cls.__qualname__} has two configs: the type parameter is {_name(expected)}, "
                f"the attribute Config is {_name(nested)}; keep one of them"
            )

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def check_setup(self) -> None:
        """Raise a `ConfigError` if `setup()` could not do its work, without loading anything.

        It is called before `setup()`, while what an earlier run has set up is still there: a
        mistake that is found here does not cost the next run its warm model.
        """

    def setup(self) -> None:
        """Do what is expensive and depends only on `setup_fields`, such as loading a model."""

    def run(self) -> Any:
        """Run once and return the results."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")


def is_config_class(kind: Any) -> bool:
    """Return whether a type is one that configs can be checked against."""
    return isinstance(kind, type) and (
        issubclass(kind, pydantic.BaseModel) or dataclasses.is_dataclass(kind)
    )


def _type_argument(experiment: type[Experiment[Any]]) -> Any:
    """Return the type of the config that the bases of a class give, as in `Experiment[X]`.

    Raises:
        ConfigError: If it can't be the type of a config.
    """
    for base in experiment.__dict__.get("__orig_bases__", ()):
        origin: Any = typing.get_origin(base)
        if not (isinstance(origin, type) and issubclass(origin, Experiment)):
            continue
        # a generic base may have more parameters than that of its config
        parameters: tuple[Any, ...] = getattr(origin, "__parameters__", ())
        arguments = dict(zip(parameters, typing.get_args(base), strict=False))
        argument = arguments.get(origin._config_type, origin._config_type)
        if argument in (Any, object):
            return ConfigT
        kind = typing.get_origin(argument) or argument
        is_dict = isinstance(kind, type) and issubclass(kind, Mapping)
        if not (isinstance(argument, typing.TypeVar) or is_dict or is_config_class(argument)):
            raise ConfigError(
                f"the type parameter of {experiment.__qualname__} is {_name(argument)}; it must be "
                "the class of the config: a pydantic model, a dataclass, or dict[str, Any]"
            )
        return argument
    return None


def _is_subclass(kind: Any, of: Any) -> bool:
    return is_config_class(kind) and is_config_class(of) and issubclass(kind, of)


def _name(kind: Any) -> str:
    return getattr(kind, "__qualname__", repr(kind))
