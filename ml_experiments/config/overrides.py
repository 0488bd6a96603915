"""`key=value` on the command line: dotted keys, values as in YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ml_experiments.config.files import describe_parse_error, parse_yaml
from ml_experiments.config.scalars import MAX_DEPTH, MISSING, read_scalar, tree_problems
from ml_experiments.errors import ConfigError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import is_secret_name

# a field and its value as several words, or with a colon
_SPACED = re.compile(r"(?P<key>[A-Za-z_][\w.]*)(?P<sign> ?= | =| |:)(?P<value>[^\s=:][^=]*)")
_QUOTES = ('"', "'")


def grouped(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield overrides as the words that each was written in: more than one for `lr = 3`."""
    rest = list(words)
    while rest:
        count = 1
        if "=" not in rest[0]:
            has_value = rest[1:] and ("=" not in rest[1] or rest[1].startswith("="))
            count = 3 if rest[1:2] == ["="] else 2 if has_value else 1
        elif rest[0].endswith("=") and rest[1:] and "=" not in rest[1]:
            count = 2
        yield tuple(rest[:count])
        del rest[:count]


def parse_override(*words: str) -> tuple[list[str], Any]:
    """Return the parts of the key, and the value, of one `key=value`.

    Args:
        *words: The words that it was written in; one, where it is right.

    Raises:
        ConfigError: If there is no `=`, a part of the key is empty, or a list or dict is cut
            short.
    """
    override = " ".join(words)
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if len(words) > 1 or not equals:
        raise ConfigError(_not_an_override(override))
    if not all(parts) or key.startswith("-") or len(parts) > MAX_DEPTH:
        raise ConfigError(
            f"{_shorten(key)!r} is not the name of a field; write optimizer.lr=3e-4 or sizes.0=64"
        )
    return parts, parse_value(value, key)


def parse_value(written: str, key: str) -> Any:
    """Return what the value of an override means.

    Lists, dicts and quoted strings are YAML; `null`, `true` and numbers are read as such, as
    `Unquoted`; anything else is the string as it was typed, so that it may hold `: ` and ` #`.

    Raises:
        ConfigError: If what begins like a list or dict isn't one.
    """
    stripped = written.strip()
    if not stripped or stripped == MISSING:
        return written
    if stripped[0] in _QUOTES:
        return _unquote(stripped, written)
    try:
        if stripped[0] not in "[{":
            scalar = read_scalar(stripped)
            return written if type(scalar) is str else scalar
        parsed = parse_yaml(stripped)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(
            f"{key}={_show(key, written)}{describe_parse_error(e)}; for a string that begins with "
            f"{stripped[0]}, put it in quotes: {key}='\"...\"'"
        ) from e
    problems = tree_problems(parsed)
    if problems:
        raise ConfigError(f"{key}={_show(key, written)} is not valid: {'; '.join(problems)}")
    glued = _find_glued(parsed)
    if glued is not None:
        name, _, value = glued.partition(":")
        raise ConfigError(
            f"{key}={_show(key, written)}: YAML reads {_show(key, glued)} as a name without a "
            f"value; write a space after the colon: {name}: {_show(key, value)}"
        )
    return parsed


def _not_an_override(written: str) -> str:
    spaced = _SPACED.fullmatch(written)
    if spaced is not None:
        given = _show(spaced["key"], spaced["value"])
        shown = f"{spaced['key']}{spaced['sign']}{given}"
        return f"{shown!r} is not an override; write {spaced['key']}={given}"
    if written.endswith((".yaml", ".yml", ".json")):
        return f"{_shorten(written)!r} is not an override; write --config {written} for a file"
    return f"{_shorten(written)!r} is not an override; write it as key=value"


def _find_glued(data: Any) -> str | None:
    """Return a key such as `a:1`, which was meant as the field `a`; None without any."""
    if isinstance(data, list):
        return next(filter(None, map(_find_glued, data)), None)
    if not isinstance(data, dict):
        return None
    own = (key for key, value in data.items() if value is None and ":" in key.strip(":"))
    return next(own, None) or _find_glued(list(data.values()))


def assign(config: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set the field that a dotted key names; a list item is named by its number.

    Raises:
        ConfigError: If the key leads through something without fields, or past a list's end.
    """
    here: Any = config
    for depth, part in enumerate(parts[:-1]):
        place = ".".join(parts[: depth + 1])
        if isinstance(here, list):
            here = here[_index(here, part, parts[:depth])]
        else:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
        if not isinstance(here, dict | list):
            raise ConfigError(
                f"{'.'.join(parts)}: {place} is {_show(place, repr(here))}, which has no fields"
            )
    if isinstance(here, list):
        here[_index(here, parts[-1], parts[:-1])] = value
    else:
        here[parts[-1]] = value


def _index(items: list[Any], part: str, parents: list[str]) -> int:
    if not (part.isascii() and part.isdigit() and int(part) < len(items)):
        allowed = f"0 to {len(items) - 1}" if items else "none, it is empty"
        raise ConfigError(
            f"{'.'.join([*parents, part])}: {part!r} is no item of the list {'.'.join(parents)}; "
            f"items: {allowed}"
        )
    return int(part)


def _unquote(stripped: str, written: str) -> Any:
    try:
        parsed = parse_yaml(stripped)
    except (yaml.YAMLError, ValueError):
        return written  # the quotes are part of the string, as in: "yes" was the answer
    return parsed if isinstance(parsed, str) else written


def _show(key: str, value: str) -> str:
    is_secret = any(is_secret_name(part) for part in key.split("."))
    return Redactor.MARK if is_secret else _shorten(value)


def _shorten(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}..."
