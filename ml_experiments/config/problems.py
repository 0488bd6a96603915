"""Messages about an invalid config, with what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from ml_experiments.config.fields import (
    allowed_values,
    allows_unknown_fields,
    choices_of,
    field_at,
    fields_of,
    models_at,
)
from ml_experiments.config.scalars import Location, is_number_list, parse_scalar
from ml_experiments.errors import suggest
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import is_secret_name

_MAX_SHOWN_LENGTH = 80
_MAX_SHOWN_DEPTH = 5
_LIST_TYPES = ("list_type", "tuple_type", "set_type", "frozen_set_type")
_DICT_TYPES = ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type")
# the beginning of the name that pydantic gives an error, and a value of that type
_EXAMPLES = {
    "time_delta_": "90 for seconds, PT1H30M or 01:30:00",
    "datetime_": "2026-11-25T14:00",
    "date_": "2026-11-25",
    "time_": "14:00",
}
_FIELD_NAMED = re.compile(r"Value error, (\w+): (.+)", re.DOTALL)
_EXTRA = ("extra_forbidden", "unexpected_keyword_argument")


def describe_problems(
    errors: list[ErrorDetails], schema: type[Any], data: Mapping[str, Any], *, is_written: bool
) -> tuple[str, ...]:
    """Return one message per field: what it is called, what was given, what is allowed.

    Args:
        errors: What pydantic says.
        schema: What the data was validated as.
        data: What was given.
        is_written: Whether it was written in a file or on the command line, and not in Python.
    """
    by_field: dict[str, list[str]] = {}
    located = [(path_in(data, error), error) for error in errors]
    parents = {path[:depth] for path, _ in located for depth in range(len(path))}
    for path, error in located:
        if path in parents and error["type"].endswith("_type"):
            continue  # of a member of a union that is something else than what was given
        message = _describe(error, schema, path, is_written=is_written)
        field = ".".join(map(str, path)) or "config"
        named = None if path else _FIELD_NAMED.match(error["msg"])
        # a validator of the whole config can say which field is wrong
        if named and any(named[1] in fields_of(m) for m in models_at(schema, ())):
            field, message = named[1], named[2]
        if message not in by_field.setdefault(field, []):
            by_field[field].append(message)
    # there is one message for each member of a union
    return tuple(f"{field}: {'; or '.join(messages)}" for field, messages in by_field.items())


def unknown_fields(errors: list[ErrorDetails]) -> tuple[str, ...]:
    """Return the names, at the top of a config, that are no fields of it."""
    return tuple(str(e["loc"][0]) for e in errors if _is_extra(e) and len(e["loc"]) == 1)


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
    return any(map(allows_unknown_fields, models_at(schema, path_in(data, error)[:-1])))


def _is_known(error: ErrorDetails, schema: type[Any], data: Mapping[str, Any]) -> bool:
    *parents, key = path_in(data, error)
    return any(key in fields_of(model) for model in models_at(schema, tuple(parents)))


def path_in(data: Any, error: ErrorDetails) -> Location:
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


def _describe(error: ErrorDetails, schema: type[Any], path: Location, *, is_written: bool) -> str:
    name = str(path[-1]) if path else ""
    if _is_extra(error):
        known = sorted({n for m in models_at(schema, error["loc"][:-1]) for n in fields_of(m)})
        return (
            f"unknown field, given {_show(error['input'], path)}"
            f"{_suggest_nested(path, error['input'], schema) or suggest(name, known)}; "
            f"known: {', '.join(known) or 'none'}"
        )
    info = field_at(schema, error["loc"])
    allowed = f"; allowed: {allowed_values(info)}" if info is not None else ""
    if error["type"].startswith("missing"):
        [top] = models_at(schema, ())
        is_only = len(fields_of(top)) == 1 and info is not None and info.annotation is Any
        whole = "; to get all values in it, call the parameter config" if is_only else ""
        return f"missing{allowed}{whole}"
    given = _show(error["input"], path, info)
    message = _message(error)
    is_shown = given != Redactor.MARK
    annotation = info.annotation if info else None
    hint = _hint(error, path, annotation, is_written=is_written) if is_shown else ""
    if is_written and not is_shown and error["type"] in ("string_type", "bytes_type"):
        hint = f" (as a string, in quotes: {'.'.join(map(str, path))}='\"...\"')"
    return f"given {given}: {message[:1].lower()}{message[1:]}{hint}{allowed}"


def _message(error: ErrorDetails) -> str:
    """Return what is wrong with a value, without the words of JSON and of pydantic."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "path_type":
        return "it must be a path"
    if kind == "union_tag_not_found":
        return f"it has no {context['discriminator']}, which tells which of several it is"
    if kind == "union_tag_invalid":
        return f"{context['discriminator']} must be one of {context['expected_tags']}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return message.replace("a valid array", "a valid list").replace("an object", "a dict")


def _suggest_nested(path: Location, given: Any, schema: type[Any]) -> str:
    """Return a suggestion for a field that is inside another one, or was put into one."""
    if len(path) != 1:
        return ""
    paths = list(_paths(schema, ()))
    written = re.sub(r"__|[/:-]", ".", str(path[0]))
    ends = [p for p in paths if "." in p and (p == written or p.endswith(f".{written}"))]
    if isinstance(given, Mapping) and len(given) == 1:  # config.lr, which is lr
        ends += [p for p in paths if p == next(iter(given))]
    return f" (did you mean {ends[0]!r}?)" if ends else ""


def _paths(schema: Any, location: Location) -> Iterator[str]:
    """Yield the dotted names of all fields."""
    for model in models_at(schema, location):
        for name in fields_of(model):
            inner = (*location, name)
            yield ".".join(map(str, inner))
            if len(inner) < _MAX_SHOWN_DEPTH:
                yield from _paths(schema, inner)


def _hint(error: ErrorDetails, path: Location, annotation: Any, *, is_written: bool) -> str:
    """Return how the refused value of a field is to be written, where that is known."""
    value, kind, name = error["input"], error["type"], ".".join(map(str, path))
    choices = [str(choice) for choice in choices_of(annotation)]
    quoted = None
    if kind in ("literal_error", "enum"):
        if isinstance(value, str):
            return "" if value in choices else suggest(value, choices)
        quoted = next((choice for choice in choices if _means(choice, value)), None)
    elif kind in ("string_type", "path_type", "bytes_type"):
        # True may have been written as yes, 0.001 as 1e-3, a dict as {index}
        quoted = "null" if value is None else str(value) if type(value) is int else "..."
    elif kind in _DICT_TYPES or kind == "union_tag_not_found":
        key = error.get("ctx", {}).get("discriminator", "KEY").strip("'")
        is_nested = is_written and path and isinstance(path[-1], str)
        return f" (as in {name}.{key}=VALUE)" if is_nested else ""
    elif example := next((e for start, e in _EXAMPLES.items() if kind.startswith(start)), None):
        return f" (as in {example})"
    elif isinstance(value, str) and kind in _LIST_TYPES:
        return f" (as a list: {f'{name}=[{value}]' if is_written else [value]})"
    elif isinstance(value, str) and is_number_list(value):
        return " (a run takes one value of each field; start a run for each of them)"
    if quoted is None:
        return ""
    if not is_written:
        return f" (as a string: {quoted!r})" if quoted != "..." else ""
    if path and isinstance(path[-1], int):
        return f" (as a string, in quotes: {name.rpartition('.')[0]}='[\"{quoted}\"]')"
    return f" (as a string, in quotes: {name}='\"{quoted}\"')"


def _means(choice: str, value: Any) -> bool:
    meaning = parse_scalar(choice)
    return type(meaning) is type(value) and meaning == value


def _show(value: Any, path: Location, info: pydantic.fields.FieldInfo | None = None) -> str:
    secret_type = info is not None and "Secret" in str(info.annotation)
    if secret_type or any(is_secret_name(str(part)) for part in path):
        return Redactor.MARK
    value = _without_secrets(value)
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= _MAX_SHOWN_LENGTH else f"{shown[: _MAX_SHOWN_LENGTH - 3]}..."


def _without_secrets(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == _MAX_SHOWN_DEPTH:
        return ...
    if isinstance(value, Mapping):
        return {
            key: Redactor.MARK if is_secret_name(str(key)) else _without_secrets(item, depth + 1)
            for key, item in value.items()
        }
    return [_without_secrets(item, depth + 1) for item in value]
