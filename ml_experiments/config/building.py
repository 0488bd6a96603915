"""Configs are built from data, and made data again, with pydantic."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
from pydantic_core import PydanticSerializationError

from ml_experiments.config.fields import is_null_default
from ml_experiments.config.problems import path_in
from ml_experiments.config.scalars import Location
from ml_experiments.serialization.plain_values import to_python_scalar


@dataclass(frozen=True)
class Reader:
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
def reader_of(schema: Any) -> Reader:
    """Return what builds the configs of a type: a model, a dataclass."""
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
    return Reader(adapter, extra, is_strict)


def build(schema: Any, data: Any, extra: Literal["forbid"] | None = None) -> Any:
    """Return the config that data makes.

    A null is taken wherever it is the default of its field, also as in `names: list[str] = None`.

    Args:
        schema: Its type.
        data: Its fields, by name or alias.
        extra: `forbid` for an error where any model in it is given an unknown field.

    Raises:
        pydantic.ValidationError: If the data is not valid.
    """
    reader = reader_of(schema)
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
    problems = errors[0].errors(include_url=False)
    nulls = {path_in(data, error) for error in problems if error["input"] is None} - {()}
    defaults = [location for location in nulls if is_null_default(schema, location)]
    if not defaults:
        raise errors[0]
    for location in defaults:
        data = _without(data, location)
    return build(schema, data, extra)


def _without(data: Any, location: Location) -> Any:
    """Return data without the field at a location."""
    name, *inner = location
    if isinstance(data, list):
        index = int(name)
        return [*data[:index], _without(data[index], tuple(inner)), *data[index + 1 :]]
    if not inner:
        return {key: value for key, value in data.items() if key != name}
    return {**data, name: _without(data[name], tuple(inner))}


def dump(schema: Any, config: Any) -> Any:
    """Return a config as plain data from which it can be built again."""
    plain, exact = (
        reader_of(schema).adapter.dump_python(
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
        raise PydanticSerializationError(f"there is no JSON for a {type(value).__qualname__}")
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
