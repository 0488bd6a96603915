"""Options of calls: each set of them is one TypedDict, from which all else is derived.

A field's annotation gives its type, its bounds (`annotated_types`) and its description (`Doc`).
Keyword arguments are checked against it here; the command line and the docs are made from it.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import Doc

from ml_experiments.errors import ConfigError

if TYPE_CHECKING:
    import pydantic


def read_options(schema: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the keyword arguments that were given, checked; an allowed None is not given.

    Args:
        schema: A TypedDict.
        given: The keyword arguments.
        what: Who takes them, for the message, such as `the modal backend`.

    Raises:
        ConfigError: If one is unknown, or its value is not allowed; it names all of them.
    """
    if not given:
        return {}
    import pydantic  # imported late: `--help` needs the schema only

    from ml_experiments.config.problems import describe_problems
    from ml_experiments.serialization.plain_values import to_python_scalar

    values = {name: to_python_scalar(value) for name, value in given.items()}
    try:
        checked: dict[str, Any] = _adapter_of(cast(Hashable, schema)).validate_python(
            values, strict=True, extra="forbid"
        )
    except pydantic.ValidationError as e:
        errors = e.errors(include_url=False)
        problems = describe_problems(errors, schema, values, is_written=False)
        lists = [
            f"{name}=[{v!r}]" for name, v in values.items() if _lacks_brackets(schema, name, v)
        ]
        if lists:
            problems = (*problems, f"write a list: {', '.join(lists)}")
        problems = tuple(p.replace("unknown field", "unknown option") for p in problems)
        raise ConfigError(f"these options of {what} are not valid:", problems) from e
    return {name: value for name, value in checked.items() if value is not None}


@functools.cache
def _adapter_of(schema: Any) -> pydantic.TypeAdapter[Any]:
    import pydantic

    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(schema)
    return adapter  # takes a millisecond, and each run reads its options


def descriptions(schema: type[Any]) -> dict[str, tuple[Any, str]]:
    """Return the type and the description of each option."""
    found = {}
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        kind, *metadata = typing.get_args(hint)
        found[name] = kind, next(m.documentation for m in metadata if isinstance(m, Doc))
    return found


def _lacks_brackets(schema: type[Any], name: str, value: Any) -> bool:
    hints = typing.get_type_hints(schema)
    return isinstance(value, str) and "Sequence" in str(hints.get(name))
