"""What a user gives as a config, as the fields to validate."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_experiments.config.building import dump
from ml_experiments.config.fields import annotation_at, takes_anything, takes_string
from ml_experiments.config.scalars import (
    MAX_DEPTH,
    LoadedConfig,
    Location,
    is_number_list,
    parse_scalar,
)
from ml_experiments.config.schema import Parameters
from ml_experiments.errors import ConfigError
from ml_experiments.experiment.base import is_config_class
from ml_experiments.redaction.secret_names import is_secret_name
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.plain_values import to_python_scalar
from ml_experiments.serialization.typed_json import from_json


def read_fields(given: Any, schema: type[Any] | None, name: str) -> dict[str, Any]:
    """Return the fields of a config that is given as a dict or as an instance of its class.

    Scalars of numpy and torch become Python's. A scalar that was written without quotes, in a
    file or an override, becomes the string that it is where its field takes no other.

    Args:
        given: The config.
        schema: What it will be validated as; None for a plain dict.
        name: What messages call the experiment.

    Raises:
        ConfigError: If it is an instance of another class, no dict, or not clear.
    """
    if is_config_class(type(given)):
        given = _fields_of_instance(given, schema, name)
    if not isinstance(given, Mapping):
        raise ConfigError(f"a config is a dict of fields, not a {type(given).__name__}")
    fields: dict[str, Any] = _with_python_scalars(dict(given), {})
    if isinstance(given, LoadedConfig):
        problems = [
            problem
            for location, written in given.unquoted.items()
            if (problem := _settle(fields, schema, location, written))
        ]
        if problems:
            raise ConfigError(f"the config of {name} is not clear:", tuple(problems))
    return fields


def _settle(
    fields: dict[str, Any], schema: type[Any] | None, location: Location, written: str
) -> str | None:
    """Read a scalar as its field takes it, or return why it could be read in two ways."""
    *parents, last = location
    holder: Any = fields
    try:
        for part in parents:
            holder = holder[part]
        if holder[last] != parse_scalar(written):
            return None
    except (LookupError, TypeError):  # the config was changed after it was loaded
        return None
    annotation = Any if schema is None else annotation_at(schema, location)
    if is_number_list(written) and takes_anything(annotation):
        path = ".".join(map(str, location))
        shown = "..." if any(is_secret_name(str(part)) for part in location) else written
        return (
            f"{path}: {shown} can be a list or a string; write {path}=[{shown}] for the list, "
            f"{path}='\"{shown}\"' for the string; a run takes one value of each field"
        )
    if takes_string(annotation, written, parse_scalar(written)):
        holder[last] = written
    return None


def _fields_of_instance(config: Any, schema: type[Any] | None, name: str) -> dict[str, Any]:
    given = type(config)
    if schema is None or not _is_same_class(given, schema):
        is_class = schema is not None and not issubclass(schema, Parameters)
        takes = f"a {_class_path(schema)}" if is_class else "a dict"
        raise ConfigError(f"the config of {name} is {takes}, not a {_class_path(given)}")
    fields: dict[str, Any] = from_json(to_json(dump(given, config)))
    return fields


def _is_same_class(given: type[Any], schema: type[Any]) -> bool:
    # a script that is running is imported again, under another name: its classes are there twice
    return given is schema or (
        given.__qualname__ == schema.__qualname__ and _file_of(given) == _file_of(schema)
    )


def _file_of(kind: type[Any]) -> Path:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(file or kind.__module__).resolve()


def _class_path(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _with_python_scalars(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Return a copy of data in which the scalars of numpy and torch are Python's.

    Args:
        value: The data.
        seen: What became of each dict and list so far, by id: one may stand in several places.
        depth: How deep the value is in the whole; what is too deep is refused later.
    """
    if type(value) not in (dict, list, tuple) or depth > MAX_DEPTH:
        return to_python_scalar(value)
    if id(value) in seen:
        return seen[id(value)]
    converted: Any
    if type(value) is dict:
        converted = seen[id(value)] = {}
        for key, item in value.items():
            converted[to_python_scalar(key)] = _with_python_scalars(item, seen, depth + 1)
        return converted
    converted = seen[id(value)] = []
    converted += [_with_python_scalars(item, seen, depth + 1) for item in value]
    return tuple(converted) if type(value) is tuple else converted
