"""The fields of a config, by its type: their names, types, choices and bounds."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import annotated_types
import pydantic
import typing_extensions

from ml_experiments.config.scalars import Location
from ml_experiments.experiment.base import is_config_class

_SIGNS = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
    (annotated_types.MultipleOf, "multiple_of", "a multiple of"),
    (annotated_types.MinLen, "min_length", "length >="),
    (annotated_types.MaxLen, "max_length", "length <="),
)


@functools.lru_cache(maxsize=256)
def fields_of(model: Any) -> dict[Any, Any]:
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
    for choice in (info.alias, info.validation_alias):
        several = choice.choices if isinstance(choice, pydantic.AliasChoices) else [choice]
        for alias in several:
            first = alias.path[0] if isinstance(alias, pydantic.AliasPath) else alias
            if isinstance(first, str):
                yield first


def field_at(schema: type[Any], location: Location) -> pydantic.fields.FieldInfo | None:
    """Return the field that the last name in a location means."""
    for end in range(len(location), 0, -1):
        for model in models_at(schema, location[: end - 1]):
            field: pydantic.fields.FieldInfo | None = fields_of(model).get(location[end - 1])
            if field is not None:
                return field
    return None


def is_null_default(schema: type[Any], location: Location) -> bool:
    """Return whether None is the default of the field at a location."""
    *parents, name = location
    for model in models_at(schema, tuple(parents)):
        if dataclasses.is_dataclass(model):
            if any(f.name == name and f.default is None for f in dataclasses.fields(model)):
                return True
        elif issubclass(model, pydantic.BaseModel):
            info = fields_of(model).get(name)
            if info is not None and info.default is None:
                return True
    return False


def models_at(schema: Any, location: Location) -> list[Any]:
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


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        is_model = is_config_class(annotation) or typing_extensions.is_typeddict(annotation)
        return [annotation] if is_model else []
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def allows_unknown_fields(model: type[Any]) -> bool:
    """Return whether a model keeps the fields that it doesn't declare."""
    config = getattr(model, "model_config", None) or getattr(model, "__pydantic_config__", {})
    return config.get("extra") == "allow"


def annotation_at(schema: type[Any], location: Location) -> Any:
    """Return the annotation of the field at a location in a config; None if there is none."""
    info = field_at(schema, location)
    if info is not None:
        return info.annotation
    return Any if any(map(allows_unknown_fields, models_at(schema, location[:-1]))) else None


def takes_anything(annotation: Any) -> bool:
    """Return whether a field of this type, or a part of it, is not checked."""
    return any(kind in (Any, object) for kind in _types_in(annotation))


def takes_string(annotation: Any, written: str, value: Any) -> bool:
    """Return whether a field takes an unquoted scalar as the string that was written.

    It does where that is one of its choices, as `off` in `Literal["on", "off"]`, and takes
    `on`, `off`, `yes` and `no` wherever it takes strings, but no other scalars.
    """
    choices = choices_of(annotation)
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return False
    if written in choices:
        return True
    kinds = list(_types_in(annotation))
    is_word = isinstance(value, bool) and written.lower() not in ("true", "false")
    takes_others = any(kind in (Any, object, bool) for kind in kinds)
    return is_word and not takes_others and any(map(_is_string, kinds))


def _is_string(kind: Any) -> bool:
    is_path = isinstance(kind, type) and issubclass(kind, PurePath)
    return is_path or kind in (str, pydantic.SecretStr)


def choices_of(annotation: Any) -> list[Any]:
    """Return the values that the enums and literals of a field allow."""
    choices: list[Any] = []
    for kind in _types_in(annotation):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            choices += [member.value for member in kind]
        elif typing.get_origin(kind) is typing.Literal:
            choices += typing.get_args(kind)
    return choices


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield the types that the values in a field may have, a `Literal` as a whole."""
    for member in members_of(annotation):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal or not arguments:
            yield member
            continue
        is_dict = isinstance(origin, type) and issubclass(origin, Mapping)
        for argument in arguments[1:] if is_dict else arguments:
            yield from _types_in(argument)


def members_of(annotation: Any) -> Iterator[Any]:
    """Yield the types that a value may have: those of a union, and what an alias stands for."""
    origin = typing.get_origin(annotation)
    if isinstance(annotation, typing_extensions.TypeAliasType):
        yield from members_of(annotation.__value__)
    elif origin is typing.Annotated:
        yield from members_of(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from members_of(member)
    else:
        yield annotation


def allowed_values(info: pydantic.fields.FieldInfo) -> str:
    """Return the type, choices and bounds of a field, as in `int, >= 1`."""
    parts = [_type_name(info.annotation)]
    for item in info.metadata:
        parts += [f"{s} {getattr(item, n)}" for kind, n, s in _SIGNS if isinstance(item, kind)]
        if getattr(item, "pattern", None):
            parts.append(f"matching {item.pattern}")
    return ", ".join(parts)


def _type_name(annotation: Any) -> str:
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
        return " or ".join(dict.fromkeys(_type_name(argument) for argument in arguments))
    if origin is not None and arguments:
        inner = ", ".join("..." if a is ... else _type_name(a) for a in arguments)
        return f"{_type_name(origin)}[{inner}]"
    return "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation))
