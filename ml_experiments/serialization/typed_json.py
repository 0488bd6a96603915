"""Python values that JSON has no type for, as JSON objects with a `$type`.

| `$type` | further keys | decodes to |
|---|---|---|
| float | value: "nan", "inf", "-inf" | float |
| int | hex | int beyond 64 bits |
| str | escaped | str with lone surrogates |
| complex | real, imag | complex |
| decimal, uuid, date, time | value | the same |
| datetime | value (ISO 8601), zone, fold | datetime |
| timedelta | days, seconds, microseconds | timedelta |
| path | value, flavour: posix or windows | Path (PurePath when of another system) |
| bytes | base64 | bytes |
| set | items | set |
| dict | items: [[key, value], ...] | dict with keys that aren't strings, or a key `$type` |

An object with any other `$type` (a value that lives in a file, one that could not be
represented) stays as it is: a `Descriptor`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import decimal
import math
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from ml_experiments.errors import RunFolderError

TYPE_KEY = "$type"
# JSON readers that hold integers in 64 bits (SQLite, Go, Rust) must not round them
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
# json.dumps recurses: at this depth it works wherever in a program it is called
MAX_DEPTH = 200


class Unportable(Exception):  # noqa: N818 - caught where the value's place is known
    """Raised for a value that can't be represented, with the reason and what to return instead."""


class Descriptor(dict[str, Any]):
    """A JSON object that stands for a value which is not in the JSON itself."""


def encode_leaf(value: Any) -> Any:
    """Return a value without members as strict JSON.

    Raises:
        Unportable: If the value is of another kind.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _encode_str(value)
    if isinstance(value, int):
        number = int(value)
        if _MIN_INT <= number <= _MAX_INT:
            return number
        return {TYPE_KEY: "int", "hex": hex(number)}
    if isinstance(value, float):
        real = float(value)
        return real if math.isfinite(real) else {TYPE_KEY: "float", "value": str(real)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {TYPE_KEY: "bytes", "base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, complex):
        parts = {"real": encode_leaf(value.real), "imag": encode_leaf(value.imag)}
        return {TYPE_KEY: "complex", **parts}
    if isinstance(value, decimal.Decimal):
        return {TYPE_KEY: "decimal", "value": str(value)}
    if isinstance(value, uuid.UUID):
        return {TYPE_KEY: "uuid", "value": str(value)}
    if isinstance(value, PurePath):
        flavour = "windows" if isinstance(value, PureWindowsPath) else "posix"
        return {TYPE_KEY: "path", "value": _encode_str(str(value)), "flavour": flavour}
    return _encode_time(value)


def _encode_str(value: str) -> Any:
    plain = str.__str__(value)
    if plain.isascii():
        return plain
    try:
        plain.encode()
    except UnicodeEncodeError:
        escaped = plain.encode("unicode_escape").decode("ascii")
        return {TYPE_KEY: "str", "escaped": escaped}
    return plain


def _encode_time(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        encoded = {TYPE_KEY: "datetime", "value": value.isoformat()}
        zone = getattr(value.tzinfo, "key", None)  # only ZoneInfo has one
        if zone is not None:
            encoded["zone"] = zone
        return {**encoded, "fold": 1} if value.fold else encoded
    if isinstance(value, datetime.date):
        return {TYPE_KEY: "date", "value": value.isoformat()}
    if isinstance(value, datetime.time):
        return {TYPE_KEY: "time", "value": value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {
            TYPE_KEY: "timedelta",
            "days": value.days,
            "seconds": value.seconds,
            "microseconds": value.microseconds,
        }
    raise Unportable(
        "only plain data, arrays, tensors, images, tables, bytes and files can be kept; "
        "return those, or str(value)"
    )


def from_json(data: Any) -> Any:
    """Decode what `encode` or `to_json` made.

    Raises:
        RunFolderError: If an object with a `$type` is not as this module writes it.
    """
    return _decode(data, 0)


def _decode(data: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RunFolderError(f"results are nested deeper than {MAX_DEPTH} levels")
    if isinstance(data, list):
        values = []
        for item in data:  # a comprehension would take one more frame per level
            values.append(_decode(item, depth + 1))
        return values
    if not isinstance(data, dict):
        return data
    if TYPE_KEY in data:
        return _decode_typed(data, depth)
    decoded = {}
    for key, item in data.items():
        decoded[key] = _decode(item, depth + 1)
    return decoded


def _decode_typed(data: dict[str, Any], depth: int) -> Any:
    kind = data[TYPE_KEY]
    try:
        if kind == "set" or kind == "dict":
            decode = _decode_set if kind == "set" else _decode_items
            return decode(data, depth)
        # large bytes are in a file
        if not isinstance(kind, str) or kind not in _LEAVES or (kind == "bytes" and "path" in data):
            return Descriptor(data)
        return _LEAVES[kind](data)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise RunFolderError(
            f"results hold a damaged {kind}: {str(data)[:200]} ({type(e).__name__}: {e})"
        ) from e


def _decode_set(data: Mapping[str, Any], depth: int) -> Any:
    members = [_decode(item, depth + 2) for item in data["items"]]
    try:
        return {as_key(member) for member in members}
    except TypeError:  # a member lives in a file: its descriptor is a dict
        return members


def _decode_items(data: Mapping[str, Any], depth: int) -> dict[Any, Any]:
    return {as_key(_decode(k, depth + 3)): _decode(v, depth + 3) for k, v in data["items"]}


def as_key(value: Any) -> Any:
    """Undo what JSON did to a tuple or frozenset that was a key or a member of a set."""
    if isinstance(value, list):
        return tuple(as_key(item) for item in value)
    return frozenset(value) if isinstance(value, set) else value


def _decode_datetime(data: Mapping[str, Any]) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(data["value"])
    if "zone" in data:
        # where the machine lacks the zone, the offset still gives the same moment
        with contextlib.suppress(zoneinfo.ZoneInfoNotFoundError):
            moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(data["zone"]))
    return moment.replace(fold=data.get("fold", 0))


def _decode_path(data: Mapping[str, Any]) -> PurePath:
    pure = PureWindowsPath if data["flavour"] == "windows" else PurePosixPath
    path = from_json(data["value"])
    return Path(path) if issubclass(Path, pure) or isinstance(Path(), pure) else pure(path)


def _decode_bytes(data: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(data["base64"], validate=True)
    except binascii.Error as e:
        raise ValueError(str(e)) from e


_LEAVES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "float": lambda d: float(d["value"]),
    "int": lambda d: int(d["hex"], 16),
    "str": lambda d: d["escaped"].encode("ascii").decode("unicode_escape"),
    "complex": lambda d: complex(from_json(d["real"]), from_json(d["imag"])),
    "decimal": lambda d: decimal.Decimal(d["value"]),
    "uuid": lambda d: uuid.UUID(d["value"]),
    "date": lambda d: datetime.date.fromisoformat(d["value"]),
    "time": lambda d: datetime.time.fromisoformat(d["value"]),
    "datetime": _decode_datetime,
    "timedelta": lambda d: datetime.timedelta(d["days"], d["seconds"], d["microseconds"]),
    "path": _decode_path,
    "bytes": _decode_bytes,
}
