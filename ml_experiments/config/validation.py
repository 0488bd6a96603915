"""A dict becomes the experiment's own config; all mistakes are reported together."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic_core import ErrorDetails, PydanticSerializationError

from ml_experiments.config.files import MAX_DEPTH, tree_problems
from ml_experiments.config.problems import describe_problems, ignored_fields
from ml_experiments.config.schema import Parameters, schema_of
from ml_experiments.errors import ConfigError, UnportableResultError
from ml_experiments.experiment.base import is_config_class
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.plain_values import to_python_scalar
from ml_experiments.serialization.typed_json import from_json


def validate_config(experiment: Callable[..., Any], data: Any) -> tuple[Any, dict[str, Any]]:
    """Return the experiment's own config, and the JSON from which `config_for` makes it again.

    An experiment with a `Config` (or a function with parameters) gets that, with its defaults
    filled in; any other gets a plain dict. The JSON holds secrets as they are.

    Args:
        experiment: The class or function.
        data: The fields as a dict, or an instance of the experiment's own `Config`.

    Raises:
        ConfigError: Naming every field that is unknown, missing or of the wrong type.
    """
    schema, name = schema_of(experiment), _name(experiment)
    if is_config_class(type(data)):
        data = _fields_of(data, schema, name)
    if not isinstance(data, Mapping):
        raise ConfigError(f"a config is a dict of fields, not a {type(data).__name__}")
    data = _with_python_scalars(dict(data), {})
    if schema is None:
        problems = tree_problems(data)
        if problems:
            raise ConfigError(f"the config of {name} is not valid:", problems)
        encoded = to_json(data)
        return from_json(encoded), encoded
    config = _validate(schema, data, name, is_new=True)
    with _json_problems(name):
        dumped: dict[str, Any] = to_json(_dump(schema, config))
        again = to_json(_dump(schema, _build(schema, from_json(dumped))))
    if json.dumps(again) != json.dumps(dumped):
        changed = [key for key in dumped if again.get(key) != dumped[key]]
        raise ConfigError(
            f"the config of {name} changes when it travels as JSON, in {', '.join(changed)}; "
            "its validators must accept what its serializers write"
        )
    return config, dumped


def config_for(experiment: Callable[..., Any], config_json: Mapping[str, Any]) -> Any:
    """Return the experiment's own config again, from the JSON of `validate_config`.

    Raises:
        ConfigError: If the experiment no longer accepts it.
    """
    schema = schema_of(experiment)
    data = from_json(dict(config_json))
    if schema is None:
        return data
    return _validate(schema, data, _name(experiment), is_new=False)


def _name(experiment: Callable[..., Any]) -> str:
    return getattr(experiment, "__qualname__", str(experiment))


def _with_python_scalars(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Return data in which the scalars of numpy and torch are Python's.

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


@contextlib.contextmanager
def _json_problems(name: str) -> Iterator[None]:
    try:
        yield
    except (
        pydantic.ValidationError,
        PydanticSerializationError,
        TypeError,
        UnicodeDecodeError,
        UnportableResultError,
    ) as e:
        raise ConfigError(
            f"the config of {name} can't travel as JSON; give its fields types that can: {e}"
        ) from e


def _fields_of(config: Any, schema: type[Any] | None, name: str) -> dict[str, Any]:
    """Return the fields of an instance of the experiment's own config class."""
    given = type(config)
    if schema is None or not _is_same_class(given, schema):
        is_class = schema is not None and not issubclass(schema, Parameters)
        takes = f"a {_class_path(schema)}" if is_class else "a dict"
        raise ConfigError(f"the config of {name} is {takes}, not a {_class_path(given)}")
    with _json_problems(name):
        fields: dict[str, Any] = from_json(to_json(_dump(given, config)))
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


def _validate(schema: Any, data: Mapping[str, Any], name: str, *, is_new: bool) -> Any:
    """Build a config: once, if it is valid.

    Args:
        schema: The type to build.
        data: Its fields.
        name: What messages call the experiment.
        is_new: Whether the fields come from a user, and not from a config that was valid.
    """
    try:
        extra = _reader_of(schema).extra
        # forbidding unknown fields everywhere would also forbid those that a model allows; a new
        # config is built again where it has such fields and another model would ignore some
        forbids = "ignore" in extra and (is_new or "allow" not in extra)
        try:
            return _build(schema, data, extra="forbid" if forbids else None)
        except pydantic.ValidationError as e:
            errors = e.errors(include_url=False)
        if forbids:
            config, errors = _build_leniently(schema, data, errors)
            if not errors:
                return config
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as e:
        raise ConfigError(f"the config class of {name} is not usable: {e}") from e
    problems = describe_problems(errors, schema, data)
    raise ConfigError(f"the config of {name} is not valid:", problems)


def _build_leniently(
    schema: type[Any], data: Mapping[str, Any], strict_errors: list[ErrorDetails]
) -> tuple[Any, list[ErrorDetails]]:
    """Build a config whose models treat unknown fields as they declare, and return its errors.

    Args:
        schema: The type to build.
        data: Its fields.
        strict_errors: The errors when every model forbids unknown fields.
    """
    config, errors = None, []
    try:
        config = _build(schema, data)
    except pydantic.ValidationError as e:
        errors = e.errors(include_url=False)
    seen = {error["loc"] for error in errors}
    ignored = ignored_fields(strict_errors, schema, data, is_valid=not errors)
    return config, [*errors, *(error for error in ignored if error["loc"] not in seen)]


@dataclass(frozen=True)
class _Reader:
    """Builds configs of one type.

    Attributes:
        adapter: Pydantic's validator and serializer of the type.
        extra: What the models in it do with unknown fields: `forbid`, `ignore`, `allow`.
        is_strict: Whether a part of it refuses values that would have to be converted.
    """

    adapter: pydantic.TypeAdapter[Any]
    extra: set[str]
    is_strict: bool


@functools.lru_cache(maxsize=64)  # the adapter of a dataclass takes a millisecond to make
def _reader_of(schema: Any) -> _Reader:
    adapter = pydantic.TypeAdapter(schema)
    extra: set[str] = set()
    is_strict = False
    waiting: list[Any] = [adapter.core_schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
            config = node.get("config") or {}
            if node.get("type") in ("model", "dataclass", "typed-dict"):
                extra.add(config.get("extra_fields_behavior", "ignore"))
            is_strict = is_strict or True in (node.get("strict"), config.get("strict"))
        elif isinstance(node, list | tuple):
            waiting += node
    return _Reader(adapter, extra, is_strict)


def _build(schema: Any, data: Any, extra: Literal["forbid"] | None = None) -> Any:
    reader = _reader_of(schema)
    attempts: list[tuple[Callable[..., Any], Any]] = [(reader.adapter.validate_python, data)]
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # it may hold Python objects
        as_json = reader.adapter.validate_json, json.dumps(data)
        # a strict model takes a date or an enum as a string only when it comes as JSON
        attempts.insert(0 if reader.is_strict else 1, as_json)
    errors = []
    for validate, value in attempts:
        try:
            return validate(value, by_alias=True, by_name=True, extra=extra)
        except pydantic.ValidationError as e:
            errors.append(e)
    raise errors[0]


def _dump(schema: Any, config: Any) -> Any:
    """Return a config as plain data from which it can be built again."""
    plain, exact = (
        _reader_of(schema).adapter.dump_python(
            config,
            mode=mode,
            round_trip=True,
            by_alias=False,
            warnings=False,
            fallback=_dump_scalar,
        )
        for mode in ("json", "python")
    )
    return _restore(plain, exact)


def _dump_scalar(value: Any) -> Any:
    scalar = to_python_scalar(value)
    if scalar is value:
        raise PydanticSerializationError(f"there is no JSON for a {_class_path(type(value))}")
    return scalar


def _restore(plain: Any, exact: Any) -> Any:
    """Put back what pydantic's JSON leaves out (secrets, NaN, infinities), and sort sets."""
    if hasattr(exact, "get_secret_value"):
        secret = exact.get_secret_value()
        return secret.decode() if isinstance(secret, bytes) else secret
    exact = to_python_scalar(exact)
    if isinstance(exact, float) and not math.isfinite(exact):
        return exact
    if isinstance(plain, dict) and isinstance(exact, dict) and len(plain) == len(exact):
        pairs = zip(plain.items(), exact.values(), strict=True)
        return {key: _restore(item, other) for (key, item), other in pairs}
    is_list = isinstance(plain, list) and isinstance(exact, list | tuple | set | frozenset)
    if is_list and len(plain) == len(exact):
        restored = [_restore(item, other) for item, other in zip(plain, exact, strict=True)]
        # the order of a set differs from process to process; that of its record must not
        return sorted(restored, key=json.dumps) if isinstance(exact, set | frozenset) else restored
    return plain
