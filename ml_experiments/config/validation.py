"""A dict becomes the experiment's own config; all mistakes are reported together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails, PydanticSerializationError

from ml_experiments.config.files import tree_problems
from ml_experiments.config.problems import describe_problems, ignored_fields
from ml_experiments.config.schema import schema_of
from ml_experiments.errors import ConfigError, UnportableResultError
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.typed_json import from_json


def validate_config(
    experiment: Callable[..., Any], data: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the experiment's own config, and the JSON from which `config_for` makes it again.

    An experiment with a pydantic `Config` (or a function with parameters) gets that, with its
    defaults filled in; any other gets a plain dict. The JSON holds secrets as they are.

    Raises:
        ConfigError: Naming every field that is unknown, missing or of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"a config is a dict of fields, not a {type(data).__name__}")
    schema = schema_of(experiment)
    name = getattr(experiment, "__qualname__", str(experiment))
    if schema is None:
        problems = tree_problems(dict(data))
        if problems:
            raise ConfigError(f"the config of {name} is not valid:", problems)
        encoded = to_json(dict(data))
        return from_json(encoded), encoded
    config = _validate(schema, data, name)
    try:
        dumped: dict[str, Any] = to_json(_dump(schema, config))
        again = to_json(_dump(schema, _build(schema, from_json(dumped))))
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
    return _validate(schema, data, getattr(experiment, "__qualname__", str(experiment)))


def _validate(schema: type[Any], data: Mapping[str, Any], name: str) -> Any:
    try:
        errors = _errors(schema, data)
        if not errors:
            return _build(schema, data)
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as e:
        raise ConfigError(f"the config class of {name} is not usable: {e}") from e
    problems = describe_problems(errors, schema, data)
    raise ConfigError(f"the config of {name} is not valid:", problems)


def _errors(schema: type[Any], data: Mapping[str, Any]) -> list[ErrorDetails]:
    """Return what is wrong with the data, unknown keys included where models ignore them."""
    try:
        _build(schema, data)
        errors = []
    except pydantic.ValidationError as e:
        errors = e.errors(include_url=False)
    try:
        _build(schema, data, extra="forbid")
    except pydantic.ValidationError as e:
        seen = {error["loc"] for error in errors}
        strict = e.errors(include_url=False)
        ignored = ignored_fields(strict, schema, data, is_valid=not errors)
        errors += [error for error in ignored if error["loc"] not in seen]
    return errors


def _build(schema: type[Any], data: Any, **options: Any) -> Any:
    adapter = pydantic.TypeAdapter(schema)
    try:
        return adapter.validate_python(data, by_alias=True, by_name=True, **options)
    except pydantic.ValidationError as e:
        try:
            # a strict model takes a date or an enum as text only when it comes as JSON
            text = json.dumps(data)
            return adapter.validate_json(text, by_alias=True, by_name=True, **options)
        except (pydantic.ValidationError, TypeError, ValueError, RecursionError):
            raise e from None


def _dump(schema: type[Any], config: Any) -> Any:
    """Return a config as plain data from which it can be built again."""
    adapter = pydantic.TypeAdapter(schema)
    plain, exact = (
        adapter.dump_python(config, mode=mode, round_trip=True, by_alias=False, warnings=False)
        for mode in ("json", "python")
    )
    return _restore(plain, exact)


def _restore(plain: Any, exact: Any) -> Any:
    """Put back what pydantic's JSON leaves out (secrets, NaN, infinities), and sort sets."""
    if hasattr(exact, "get_secret_value"):
        secret = exact.get_secret_value()
        return secret.decode() if isinstance(secret, bytes) else secret
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
