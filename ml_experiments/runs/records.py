"""Reads records, which are JSON files, into dataclasses."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import dacite

from ml_experiments.errors import RunFolderError
from ml_experiments.serialization.files import parse_strict_json

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        RunFolderError: If the file is missing, not readable, or holds something else.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a FIFO would wait for its writer
            raise RunFolderError(f"{file} is not a file")
        data = parse_strict_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise RunFolderError(f"{file} is missing") from e
    except (OSError, ValueError, RecursionError) as e:
        raise RunFolderError(f"{file} is not readable: {e}") from e
    if not isinstance(data, dict):
        raise RunFolderError(f"{file} holds a {type(data).__name__}, not an object")
    return data


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, in order; lines that are not whole are left out, with a warning.

    Raises:
        RunFolderError: If the file can't be read.
    """
    damaged: list[int] = []
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                entry = _parse_metrics(line)
                if entry is not None:
                    yield entry
                elif line.endswith("\n") and line.strip():  # the last may be half written yet
                    damaged.append(number)
    except FileNotFoundError:
        return
    except OSError as e:
        raise RunFolderError(f"{file} is not readable: {e.strerror}") from e
    if damaged:
        logger.warning(
            "%s: %d lines are damaged and were left out, the first is line %d",
            *(file, len(damaged), damaged[0]),
        )


def _parse_metrics(line: str) -> dict[str, Any] | None:
    try:
        entry = parse_strict_json(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def parse_record(kind: type[T], data: dict[str, Any]) -> T:
    """Return JSON as a dataclass; unknown keys are ignored.

    Raises:
        ValueError: If a field is missing, or its value has another type.
    """
    try:
        return dacite.from_dict(kind, data, _CONFIG)
    except dacite.MissingValueError as e:
        raise ValueError(f"{e.field_path!r} is missing") from e
    except dacite.WrongTypeError as e:
        is_container = isinstance(e.value, dict | list | tuple) and e.value
        given = f"{e.value!r:.100}" if is_container else f"a {type(e.value).__name__}"
        raise ValueError(f"{e.field_path} is {given}") from e
    except (dacite.DaciteError, TypeError, OverflowError) as e:
        raise ValueError(str(e)) from e


def to_record(value: Any) -> Any:
    """Return a dataclass as `dataclasses.asdict` does, but for copies of what is JSON already.

    A manifest holds the versions of all packages: to copy them takes longer than to write them.
    """
    if isinstance(value, list | tuple):
        return type(value)(map(to_record, value))
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        return value
    return {name: to_record(getattr(value, name)) for name in fields}


class _JsonHooks(dict[Any, Any]):
    """Hooks for what JSON lacks: tuples, and floats that are written as integers."""

    def __contains__(self, kind: object) -> bool:
        return kind is float or getattr(kind, "__origin__", None) is tuple

    def __getitem__(self, kind: Any) -> Any:
        return _to_float if kind is float else _to_tuple


def _to_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_CONFIG = dacite.Config(type_hooks=_JsonHooks(), cast=[StrEnum])
