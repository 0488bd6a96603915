"""A dict becomes the experiment's own config; all mistakes are reported together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails, PydanticSerializationError

from ml_experiments.config.building import build, dump, reader_of
from ml_experiments.config.given import read_fields
from ml_experiments.config.problems import describe_problems, ignored_fields, unknown_fields
from ml_experiments.config.scalars import LoadedConfig, tree_problems
from ml_experiments.config.schema import schema_of
from ml_experiments.errors import ConfigError, UnportableResultError
from ml_experiments.serialization.encoder import to_json
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
    with _json_problems(name):
        fields = read_fields(data, schema, name)
    if schema is None:
        problems = tree_problems(fields)
        if problems:
            raise ConfigError(f"the config of {name} is not valid:", problems)
        encoded = to_json(fields)
        return from_json(encoded), encoded
    is_written = isinstance(data, LoadedConfig)
    config = _validate(schema, fields, name, is_new=True, is_written=is_written)
    with _json_problems(name):
        dumped: dict[str, Any] = to_json(dump(schema, config))
        travelled = from_json(dumped)
        try:
            again = to_json(dump(schema, build(schema, travelled)))
        except pydantic.ValidationError as e:
            errors = e.errors(include_url=False)
            problems = describe_problems(errors, schema, travelled, is_written=False)
            raise ConfigError(
                f"the config of {name} is not valid once it has travelled as JSON; a default must "
                "be of its field's type, and validators must accept what serializers write:",
                problems,
            ) from e
    changed = [k for k in {**dumped, **again} if _same(dumped.get(k)) != _same(again.get(k))]
    if changed:
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


def prepare_config_of(experiment: Callable[..., Any]) -> None:
    """Work out now what takes long in `validate_config`; a mistake is found there, too."""
    with contextlib.suppress(ConfigError, pydantic.errors.PydanticUserError, NameError):
        schema = schema_of(experiment)
        if schema is not None:
            reader_of(schema)  # type: ignore[arg-type]


def _same(data: Any) -> str:
    """Return the same string for the same data, where 1 and 1.0 are the same number."""
    return json.dumps(json.loads(json.dumps(data), parse_int=float))


def _name(experiment: Callable[..., Any]) -> str:
    return getattr(experiment, "__qualname__", str(experiment))


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
        if isinstance(e, PydanticSerializationError) and e.__cause__ is not None:
            raise e.__cause__ from None  # a serializer of the user's has raised it
        raise ConfigError(
            f"the config of {name} can't travel as JSON; give its fields types that can: {e}"
        ) from e


def _validate(
    schema: Any, data: Mapping[str, Any], name: str, *, is_new: bool, is_written: bool = False
) -> Any:
    """Build a config: once, if it is valid.

    Args:
        schema: The type to build.
        data: Its fields.
        name: What messages call the experiment.
        is_new: Whether the fields come from a user, and not from a config that was valid.
        is_written: Whether they were written in a file or on the command line.
    """
    try:
        extra = reader_of(schema).extra
        # forbidding unknown fields everywhere would also forbid those that a model allows; a new
        # config is built again where it has such fields and another model would ignore some
        forbids = "ignore" in extra and (is_new or "allow" not in extra)
        try:
            return build(schema, data, extra="forbid" if forbids else None)
        except pydantic.ValidationError as e:
            errors = e.errors(include_url=False)
        if forbids:
            config, errors = _build_leniently(schema, data, errors)
            if not errors:
                return config
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as e:
        raise ConfigError(f"the config class of {name} is not usable: {e}") from e
    problems = describe_problems(errors, schema, data, is_written=is_written)
    raise ConfigError(f"the config of {name} is not valid:", problems, unknown_fields(errors))


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
        config = build(schema, data)
    except pydantic.ValidationError as e:
        errors = e.errors(include_url=False)
    seen = {error["loc"] for error in errors}
    ignored = ignored_fields(strict_errors, schema, data, is_valid=not errors)
    return config, [*errors, *(error for error in ignored if error["loc"] not in seen)]
