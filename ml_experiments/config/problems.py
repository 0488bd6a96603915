"""What pydantic found wrong with a config, in words that say what is allowed."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import annotated_types
import pydantic
import typing_extensions
from pydantic_core import ErrorDetails

from ml_experiments.errors import suggest
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import is_secret_name

_LONGEST_VALUE = 80
_DEEPEST_SHOWN = 5
_SIGNS = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
    (annotated_types.MultipleOf, "multiple_of", "a multiple of"),
    (annotated_types.MinLen, "min_length", "length >="),
    (annotated_types.MaxLen, "max_length", "length <="),
)

_EXTRA = ("extra_forbidden", "unexpected_keyword_argument")

Location = tuple[int | str, ...]


def describe_problems(
    errors: list[ErrorDetails], schema: type[Any], data: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return one message per field: what it is called, what was given, what is allowed."""
    by_field: dict[str, list[str]] = {}
    for error in errors:
        path = _path_in(data, error)
        message = _describe(error, schema, path)
        field = ".".join(map(str, path)) or "config"
        if message not in by_field.setdefault(field, []):
            by_field[field].append(message)
    # the members of a union each say what they would have accepted
    return tuple(f"{field}: {'; or '.join(messages)}" for field, messages in by_field.items())


def ignored_fields(
    errors: list[ErrorDetails], schema: type[Any], data: Mapping[str, Any], *, is_valid: bool
) -> list[ErrorDetails]:
    """Return what is wrong with fields that a model would take no notice of.

    Args:
        errors: From validation in which every model forbids unknown fields.
        schema: What the data was validated as.
        data: What was given.
        is_valid: Whether the data is valid when models may ignore fields.
    """
    real = [error for error in errors if not _is_extra(error) or not _any_goes(error, schema, data)]
    unknown = [error for error in real if _is_extra(error) and not _is_known(error, schema, data)]
    if unknown or not is_valid:
        return unknown
    if not any(map(_is_extra, real)):
        return []
    # each field is known to some member of a union, but no member takes them all
    return [error for error in real if not _is_extra(error)] or real


def _is_extra(error: ErrorDetails) -> bool:
    return error["type"] in _EXTRA


def _any_goes(error: ErrorDetails, schema: type[Any], data: Mapping[str, Any]) -> bool:
    return any(map(_takes_any, _models_at(schema, _path_in(data, error)[:-1])))


def _is_known(error: ErrorDetails, schema: type[Any], data: Mapping[str, Any]) -> bool:
    *parents, key = _path_in(data, error)
    return any(key in fields_of(model) for model in _models_at(schema, tuple(parents)))


def _takes_any(model: type[Any]) -> bool:
    config = getattr(model, "model_config", None) or getattr(model, "__pydantic_config__", {})
    return config.get("extra") == "allow"


def fields_of(model: type[Any]) -> dict[Any, Any]:
    """Return the fields of a model, dataclass or TypedDict by each name that they may be given."""
    if issubclass(model, pydantic.BaseModel):
        names: dict[str, Any] = {}
        for name, info in model.model_fields.items():
            names |= dict.fromkeys([name, *_aliases(info)], info)
        return names
    hints = typing.get_type_hints(model, include_extras=True)
    if dataclasses.is_dataclass(model):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(model) if field.init}
    return {name: _field_info(hint) for name, hint in hints.items()}


def _field_info(hint: Any) -> pydantic.fields.FieldInfo:
    if typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        hint = typing.get_args(hint)[0]
    return pydantic.fields.FieldInfo.from_annotation(hint)


def _aliases(info: pydantic.fields.FieldInfo) -> Iterator[str]:
    choices = [info.alias, info.validation_alias]
    for choice in choices:
        several = choice.choices if isinstance(choice, pydantic.AliasChoices) else [choice]
        for alias in several:
            first = alias.path[0] if isinstance(alias, pydantic.AliasPath) else alias
            if isinstance(first, str):
                yield first


def _path_in(data: Any, error: ErrorDetails) -> Location:
    """Return the part of an error's location that names fields; the rest names union members."""
    path: list[int | str] = []
    last = len(error["loc"]) - 1
    for depth, part in enumerate(error["loc"]):
        if isinstance(data, Mapping) and part in data:
            data = data[str(part)]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif not (depth == last and error["type"].startswith("missing")):
            continue
        path.append(part)
    return tuple(path)


def _describe(error: ErrorDetails, schema: type[Any], path: Location) -> str:
    name = str(path[-1]) if path else ""
    if _is_extra(error):
        known = sorted({n for m in _models_at(schema, error["loc"][:-1]) for n in fields_of(m)})
        return (
            f"unknown field, given {_show(error['input'], path)}{suggest(name, known)}; "
            f"known: {', '.join(known) or 'none'}"
        )
    info = _field_at(schema, error["loc"])
    allowed = f"; allowed: {allowed_values(info)}" if info is not None else ""
    if error["type"].startswith("missing"):
        return f"missing{allowed}"
    given = _show(error["input"], path, info)
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    hint = ""
    if error["type"] in ("literal_error", "enum") and isinstance(error["input"], str):
        hint = suggest(error["input"], _choices(info.annotation if info else None))
    elif error["type"] == "string_type" and isinstance(error["input"], bool | int | float):
        hint = f" (as text, in quotes: {name}='\"...\"')"
    return f"given {given}: {message[:1].lower()}{message[1:]}{hint}{allowed}"


def allowed_values(info: pydantic.fields.FieldInfo) -> str:
    """Return the type, choices and bounds of a field, as in `int, >= 1`."""
    parts = [_type_text(info.annotation)]
    for item in info.metadata:
        parts += [f"{s} {getattr(item, n)}" for kind, n, s in _SIGNS if isinstance(item, kind)]
        if getattr(item, "pattern", None):
            parts.append(f"matching {item.pattern}")
    return ", ".join(parts)


def _type_text(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " or ".join(repr(member.value) for member in annotation)
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is typing.Annotated:
        return allowed_values(pydantic.fields.FieldInfo.from_annotation(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_text(argument) for argument in arguments))
    if origin is not None and arguments:
        inner = ", ".join("..." if a is ... else _type_text(a) for a in arguments)
        return f"{_type_text(origin)}[{inner}]"
    return "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for inner in typing.get_args(annotation) for choice in _choices(inner)]


def _show(value: Any, path: Location, info: pydantic.fields.FieldInfo | None = None) -> str:
    secret_type = info is not None and "Secret" in str(info.annotation)
    if secret_type or any(is_secret_name(str(part)) for part in path):
        return Redactor.MARK
    value = _without_secrets(value)
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _without_secrets(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == _DEEPEST_SHOWN:
        return ...
    if isinstance(value, Mapping):
        return {
            key: Redactor.MARK if is_secret_name(str(key)) else _without_secrets(item, depth + 1)
            for key, item in value.items()
        }
    return [_without_secrets(item, depth + 1) for item in value]


def _field_at(schema: type[Any], location: Location) -> pydantic.fields.FieldInfo | None:
    """Return the field that the last name in a location means."""
    for end in range(len(location), 0, -1):
        for model in _models_at(schema, location[: end - 1]):
            field: pydantic.fields.FieldInfo | None = fields_of(model).get(location[end - 1])
            if field is not None:
                return field
    return None


def _models_at(schema: type[Any], location: Location) -> list[type[Any]]:
    """Return the models that the value at a location may be validated as."""
    models = [schema]
    for part in location:
        inner = [fields[part].annotation for m in models if part in (fields := fields_of(m))]
        if inner:
            models = [model for annotation in inner for model in _models_in(annotation)]
            continue
        # an index, a dict's key, or pydantic's name for the member of a union
        models = [model for model in models if model.__name__ == part] or models
    return models


def _models_in(annotation: Any) -> list[type[Any]]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        is_model = issubclass(annotation, pydantic.BaseModel) or dataclasses.is_dataclass(
            annotation
        )
        return [annotation] if is_model or typing_extensions.is_typeddict(annotation) else []
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]
