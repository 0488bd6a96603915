"""What an experiment accepts as its config: a pydantic model, a dataclass, parameters, a dict."""

from __future__ import annotations

import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from ml_experiments.config.fields import members_of
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import is_config_class

_WHOLE_CONFIG = ("config", "cfg")
_JSON_TYPES = (bool, int, float, str, list, dict)
_Kind = inspect.Parameter


@functools.lru_cache(maxsize=64)  # making a model takes milliseconds
def schema_of(experiment: Callable[..., Any]) -> type[Any] | None:
    """Return the type that an experiment's config is validated as; None when it's a plain dict.

    A class without a `Config` says by the annotation of its first parameter which it takes.

    Raises:
        ConfigError: If a function's parameters can't be filled from a config, or the annotation
            is nothing that fields can be made into.
    """
    if isinstance(experiment, type):
        config = getattr(experiment, "Config", None)
        if is_config_class(config):
            return typing.cast("type[Any]", config)
        init: Any = experiment.__init__  # type: ignore[misc]
        return _annotated_config(init, 1, experiment.__qualname__)
    parameters = list(inspect.signature(experiment).parameters.values())
    annotations = _annotations(experiment)
    if len(parameters) == 1 and _can_be_positional(parameters[0]):
        annotation = annotations.get(parameters[0].name)
        if is_config_class(annotation):
            return typing.cast("type[Any]", annotation)
        if parameters[0].name in _WHOLE_CONFIG:
            return _annotated_config(experiment, 0, experiment.__qualname__)
    return _model_of_parameters(experiment, parameters, annotations)


def _annotated_config(function: Callable[..., Any], position: int, name: str) -> type[Any] | None:
    """Return the type of the config that a parameter takes; None for a dict.

    Raises:
        ConfigError: If it takes something else.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # of a class in C
        return None
    if len(parameters) <= position or not _can_be_positional(parameters[position]):
        return None
    annotation = _annotations(function).get(parameters[position].name, Any)
    kinds = [typing.get_origin(kind) or kind for kind in members_of(annotation)]
    for kind in kinds:
        if is_config_class(kind):
            return typing.cast("type[Any]", kind)
    if not any(map(_is_dict, kinds)):
        raise ConfigError(
            f"{name} takes {getattr(annotation, '__qualname__', annotation)} as its config, which "
            "can't be made from fields; annotate a dataclass, a pydantic model or a dict"
        )
    return None


def _is_dict(kind: Any) -> bool:
    if kind in (Any, object) or isinstance(kind, typing.TypeVar):
        return True
    return isinstance(kind, type) and issubclass(kind, Mapping)


def call_function(experiment: Callable[..., Any], config: Any) -> Any:
    """Call a function experiment with its config: as one argument, or as named ones."""
    if isinstance(config, Parameters):
        positional, named = [], {name: getattr(config, name) for name in _names(config)}
        for parameter in inspect.signature(experiment).parameters.values():
            if parameter.kind is _Kind.POSITIONAL_ONLY:
                positional.append(named.pop(parameter.name))
        return experiment(*positional, **named)
    return experiment(config)


class Parameters(pydantic.BaseModel):
    """Base of the models that are made from the parameters of functions."""

    model_config = pydantic.ConfigDict(
        frozen=True, protected_namespaces=(), arbitrary_types_allowed=True
    )


def _names(config: Parameters) -> list[str]:
    return [*type(config).model_fields, *(config.model_extra or {})]


def _can_be_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        # names that are imported for type checkers only, prose: those parameters take anything
        found = getattr(function, "__annotations__", {})
        return {name: kind for name, kind in found.items() if not isinstance(kind, str)}


def _annotation_of(default: Any) -> Any:
    # a default such as Path("data") must be a Path again once it has travelled as JSON
    kind = type(default)
    return Any if default is ... or default is None or kind in _JSON_TYPES else kind


def _model_of_parameters(
    function: Callable[..., Any], parameters: list[inspect.Parameter], annotations: dict[str, Any]
) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    extra = "forbid"
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is _Kind.VAR_KEYWORD:
            extra = "allow"
            continue
        if parameter.kind is _Kind.VAR_POSITIONAL or name.startswith("_"):
            raise ConfigError(
                f"{function.__qualname__} can't be an experiment: a config has no way to fill its "
                f"parameter {'*' if parameter.kind is _Kind.VAR_POSITIONAL else ''}{name}; rename "
                "it, or take one parameter `config`"
            )
        default = ... if parameter.default is _Kind.empty else parameter.default
        fields[name] = (annotations.get(name, _annotation_of(default)), default)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a parameter may be called `copy` or `json`
        base = type("_Base", (Parameters,), {"model_config": {"extra": extra}})
        try:
            return pydantic.create_model(function.__name__, __base__=base, **fields)
        except (pydantic.errors.PydanticUserError, NameError) as e:
            raise ConfigError(f"the parameters of {function.__qualname__}: {e}") from e
