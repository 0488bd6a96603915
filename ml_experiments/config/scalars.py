"""What a config may consist of, and unquoted scalars of YAML and of overrides."""

from __future__ import annotations

import math
import re
from typing import Any

from ml_experiments.errors import ConfigError

# the keys and indices that lead to a value in a config
Location = tuple[int | str, ...]

# written in a file for a value that has to be given, as OmegaConf and Hydra do
MISSING = "???"

MAX_DEPTH = 100
MAX_VALUES = 1_000_000

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_TRUE = {"true", "yes", "on"}


def parse_scalar(written: str) -> Any:
    """Return the null, bool, int or float that an unquoted scalar of YAML means, or the string.

    As in YAML 1.1, except what surprises there: `1e-3` is a number; `16:9`, `010` and dates
    are strings.
    """
    if _NULL.fullmatch(written):
        return None
    if _BOOL.fullmatch(written):
        return written.lower() in _TRUE
    if _INT.fullmatch(written):
        digits = written.replace("_", "")
        return int(digits, 0) if digits.lstrip("+-") != "0" else 0
    if _FLOAT.fullmatch(written):
        plain = written.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
        number = float(plain)
        # 12e3456 overflows: it is no number, but perhaps a commit hash
        return written if math.isinf(number) and "inf" not in plain else number
    return written


def is_number_list(written: str) -> bool:
    """Return whether this looks like several numbers with commas, as in `1e-3,1e-4`."""
    parts = [part.strip() for part in written.split(",")]
    return len(parts) > 1 and not any(p == "" or isinstance(parse_scalar(p), str) for p in parts)


class Unquoted(str):
    """A scalar that was written without quotes, until it is known what its field takes.

    Attributes:
        value: What it means as YAML.
    """

    value: Any

    def __new__(cls, written: str) -> Unquoted:
        self = super().__new__(cls, written)
        self.value = parse_scalar(written)
        return self

    def __repr__(self) -> str:
        return repr(self.value)


def read_scalar(written: str) -> Any:
    """Return what an unquoted scalar means: as `Unquoted` where its field may take it otherwise."""
    scalar = Unquoted(written)
    if scalar.value is None:
        return None
    is_plain = scalar.value == written and written != MISSING and not is_number_list(written)
    return written if is_plain else scalar


class LoadedConfig(dict[str, Any]):
    """A config that was read from a file and overrides.

    Attributes:
        unquoted: How the scalars without quotes were written, by the keys and indices that lead
            to them.
    """

    unquoted: dict[Location, str]


def resolve_scalars(config: Any) -> tuple[Any, dict[Location, str]]:
    """Return a config without `Unquoted`, and how those were written.

    Raises:
        ConfigError: Naming every field that is `???`.
    """
    unquoted: dict[Location, str] = {}

    def resolve(value: Any, location: Location) -> Any:
        if isinstance(value, Unquoted):
            unquoted[location] = str(value)
            return value.value
        if isinstance(value, dict):
            return {key: resolve(item, (*location, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [resolve(item, (*location, index)) for index, item in enumerate(value)]
        return value

    resolved = resolve(config, ())
    missing = [".".join(map(str, location)) for location, w in unquoted.items() if w == MISSING]
    if missing:
        raise ConfigError(
            f"these fields are {MISSING}, which stands for a value that has to be given:",
            tuple(
                f"{name}: write {name}=... (for the string itself: '\"{MISSING}\"')"
                for name in missing
            ),
        )
    return resolved, unquoted


_SCALARS = (bool, int, float, str, Unquoted)


def tree_problems(data: Any) -> tuple[str, ...]:
    """Return why data can't be a config: not JSON, or so deep or large that it's a mistake."""
    problems: list[str] = []
    waiting: list[tuple[str, Any, int]] = [("", data, 0)]
    count = 0
    while waiting:
        path, value, depth = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            return (*problems, f"more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            return (*problems, f"{path[:80]}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    problems.append(f"{path or 'top level'}: the key {key!r} is not a string")
                waiting.append((f"{path}.{key}" if path else str(key), item, depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}.{i}", item, depth + 1) for i, item in enumerate(value)]
        elif not (value is None or type(value) in _SCALARS):
            problems.append(
                f"{path or 'top level'}: {_article(type(value))} is not JSON; use a string, "
                "a number, true or false, null, a list or a dict"
            )
    return tuple(reversed(problems))


def _article(kind: type) -> str:
    # private parts are left out, as in pathlib._local.PosixPath of Python 3.13
    module = [part for part in kind.__module__.split(".") if not part.startswith("_")]
    name = ".".join([*module, kind.__qualname__]).removeprefix("builtins.")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
