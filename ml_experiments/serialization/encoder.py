"""Turns a value into strict JSON, and collects what can't be represented."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ml_experiments.errors import UnportableResultError
from ml_experiments.serialization.plain_values import (
    MAX_CONTAINERS,
    MAX_VALUES,
    count_values,
    to_plain,
)
from ml_experiments.serialization.typed_json import (
    MAX_DEPTH,
    TYPE_KEY,
    Descriptor,
    Unportable,
    as_key,
    encode_leaf,
    from_json,
)

_COMMON_LEAVES = (str, int, float, bool)
# what a value's own class or library raises; an OSError comes from the disk, and is not caught
_READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MAX_PATH_LENGTH = 200
_MAX_KEY_LENGTH = 40
_MAX_PROBLEMS = 1000

# where a value stands in the whole: the keys and indices that lead to it
Place = tuple[str | int, ...]
WriteFile = Callable[[Any, Place], dict[str, Any] | None]


def to_json(value: Any) -> Any:
    """Return a decoded value as strict JSON, without writing files.

    Raises:
        UnportableResultError: If a part can't be represented in JSON.
    """
    encoder = Encoder("results", None)
    encoded = encoder.encode(value, (), 0)
    if encoder.problems:
        raise UnportableResultError(tuple(encoder.problems))
    return encoded


class Encoder:
    """Encodes one value.

    At MAX_DEPTH, with three frames a level, Python's own limit of recursion is still far away.

    Args:
        name: What messages call the value, such as `results`.
        write_file: Writes a value that belongs in a file and returns its descriptor, or None
            for any other value; without it such values are problems.
    """

    def __init__(self, name: str, write_file: WriteFile | None) -> None:
        self.name = name
        self.write_file = write_file
        self.problems: list[str] = []
        self.active: dict[int, Place] = {}  # the containers around the current value
        self.count = 0
        self.containers = 0
        self.counted: dict[int, tuple[Any, int]] = {}

    def encode(self, value: Any, place: Place, depth: int) -> Any:
        """Return the value as JSON; a part that can't be represented is replaced and recorded."""
        self.count += 1
        if value is None or type(value) in _COMMON_LEAVES:
            return encode_leaf(value)
        identity = id(value)
        try:
            if identity in self.active:
                raise Unportable(
                    f"it is {self._path(self.active[identity])} again, an endless loop"
                )
            # of the whole, as much as fits is kept
            if place and count_values(value, self.counted, depth) > MAX_VALUES - self.count:
                raise Unportable(f"it has {_too_many()}")
            self.active[identity] = place
            try:
                return self._encode(value, place, depth)
            finally:
                del self.active[identity]
        except Unportable as e:
            self.problems.append(f"{self._path(place)}: {_type_name(value)} is not portable: {e}")
            return {TYPE_KEY: "unportable", "type": _type_name(value), "path": self._path(place)}

    def _encode(self, value: Any, place: Place, depth: int) -> Any:
        if isinstance(value, Descriptor) and self.write_file is None:
            return dict(value)
        try:
            plain = to_plain(value)
        except _READ_ERRORS as e:
            raise Unportable(f"it can't be read: {type(e).__name__}: {e}") from e
        if isinstance(plain, Descriptor):
            return dict(plain)
        if isinstance(plain, dict | list | set):
            self.containers += 1
        if isinstance(plain, dict):
            return self._encode_dict(plain, place, depth)
        if isinstance(plain, list):
            _check_depth(depth + 1)
            return self._encode_list(plain, place, depth + 1)
        if isinstance(plain, set):
            _check_depth(depth + 2)
            return {TYPE_KEY: "set", "items": self._encode_set(plain, place, depth + 2)}
        if self.write_file is not None:
            try:
                descriptor = self.write_file(plain, place)
            except _READ_ERRORS as e:
                raise Unportable(f"it can't be written: {type(e).__name__}: {e}") from e
            if descriptor is not None:
                return descriptor
        return encode_leaf(plain)

    def _encode_list(self, items: list[Any], place: Place, depth: int) -> list[Any]:
        encoded = []
        for index, item in enumerate(items):
            encoded.append(self.encode(item, (*place, index), depth))
            if self._is_full():
                self._stop(place)
                break
        return encoded

    def _encode_set(self, members: set[Any], place: Place, depth: int) -> list[Any]:
        # a member must be the same value once decoded, so none goes to a file
        write_file, self.write_file = self.write_file, None
        encoded = self._encode_list(list(members), place, depth)
        self.write_file = write_file
        return sorted(encoded, key=lambda item: json.dumps(item, sort_keys=True))

    def _encode_dict(self, items: dict[Any, Any], place: Place, depth: int) -> dict[str, Any]:
        keys = [self._encode_key(key, index, place) for index, key in enumerate(items)]
        is_object = TYPE_KEY not in items and all(type(key) is str for key in keys)
        deeper = depth + (1 if is_object else 3)
        _check_depth(deeper)
        pairs, seen = [], set()
        for key, item in zip(keys, items.values(), strict=True):
            label = key if isinstance(key, str) else as_key(from_json(key))
            inside = (*place, label if isinstance(label, str | int) else repr(label))
            if label in seen:
                self.problems.append(f"{self._path(inside)}: two keys become this one")
                continue
            seen.add(label)
            pairs.append((key, self.encode(item, inside, deeper)))
            if self._is_full():
                self._stop(place)
                break
        if is_object:
            return dict(pairs)
        return {TYPE_KEY: "dict", "items": [list(pair) for pair in pairs]}

    def _encode_key(self, key: Any, index: int, place: Place) -> Any:
        if type(key) is str:
            return encode_leaf(key)
        encoder = Encoder(self.name, None)
        encoded = encoder.encode(key, place, 0)
        try:
            if not encoder.problems:
                hash(as_key(from_json(encoded)))
                return encoded
        except TypeError:
            pass  # such as a dataclass: it is a dict once decoded
        kind = _type_name(key)
        self.problems.append(
            f"{self._path(place)}: a key of type {kind} is not portable; "
            "use strings, numbers, dates or tuples of them"
        )
        return f"unportable key {index} of type {kind}"

    def _is_full(self) -> bool:
        return (
            self.count > MAX_VALUES
            or self.containers > MAX_CONTAINERS
            or len(self.problems) > _MAX_PROBLEMS
        )

    def _stop(self, place: Place) -> None:
        if self.count < 2 * MAX_VALUES:  # one problem is enough
            self.count = 2 * MAX_VALUES
            self.problems.append(f"{self._path(place)}: {_too_many()}; the rest is left out")

    def _path(self, place: Place) -> str:
        path = self.name
        for part in place:
            if isinstance(part, int):
                path += f"[{part}]"
            elif part.isidentifier():
                path += f".{_shorten(part, _MAX_KEY_LENGTH)}"
            else:
                path += f"[{_shorten(ascii(part), _MAX_KEY_LENGTH)}]"
        return _shorten(path, _MAX_PATH_LENGTH)


def _too_many() -> str:
    return (
        f"more than {MAX_VALUES:,} values or {MAX_CONTAINERS:,} lists and dicts; return an array, "
        "or write a file in output_dir"
    )


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Unportable(f"it is nested deeper than {MAX_DEPTH} levels of JSON")


def _shorten(name: str, max_length: int) -> str:
    if len(name) <= max_length:
        return name
    return f"{name[: max_length // 2]}...{name[-(max_length // 2 - 3) :]}"


def _type_name(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
