"""The parameters of a class, from the query of a request to one of its web endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_proto import api_pb2


def parameters_from_query(schema: Any, query: Mapping[str, str]) -> bytes:
    """Return the serialised parameters of a class; those that are not given have their defaults.

    Args:
        schema: The `ClassParameterSpec` messages of the class.
        query: The names and values of a request's query.

    Raises:
        ValueError: If one is missing, or is not of its type.
    """
    values = [_value(spec, query.get(spec.name)) for spec in schema]
    found: bytes = api_pb2.ClassParameterSet(parameters=values).SerializeToString(
        deterministic=True
    )
    return found


def _value(spec: Any, given: str | None) -> Any:
    value = api_pb2.ClassParameterValue(name=spec.name, type=spec.type)
    kind = api_pb2.ParameterType.Name(spec.type).removeprefix("PARAM_TYPE_").lower()
    if given is None and spec.has_default:
        setattr(value, f"{kind}_value", getattr(spec, f"{kind}_default"))
    elif given is None:
        raise ValueError(f"The query has no {spec.name}, which is a parameter of the class.")
    elif kind == "string":
        value.string_value = given
    elif kind == "int":
        value.int_value = _whole_number(spec.name, given)
    elif kind == "bool" and given.lower() in ("true", "false", "1", "0"):
        value.bool_value = given.lower() in ("true", "1")
    else:
        raise ValueError(f"{spec.name}={given} in the query is no {kind}.")
    return value


def _whole_number(name: str, given: str) -> int:
    try:
        return int(given)
    except ValueError as e:
        raise ValueError(f"{name}={given} in the query is no int.") from e
