"""Keeps secrets out of records and logs: their values are replaced wherever they stand."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from ml_experiments.serialization.loading import FILE_TYPES
from ml_experiments.serialization.typed_json import TYPE_KEY

# a shorter value would be found inside ordinary words; as a whole value it's still replaced
_MIN_PART_LENGTH = 6
_MIN_BASE64_LENGTH = 8
_MIN_LINE_LENGTH = 12
_WORD = re.compile(r"[A-Za-z_]+")
# in an encoded value: how it is to be decoded
_TYPE_FIELDS = {TYPE_KEY, "as", "dtype", "flavour", "freq", "mode", "unit", "zone"}


class Redactor:
    """Replaces known secret values, also in their JSON, URL and base64 forms, by `MARK`."""

    MARK = "<redacted>"

    def __init__(self, values: Iterable[str]) -> None:
        # numbered, the same in every process that has the same secrets
        self._whole = {value: n for n, value in enumerate(sorted({v for v in values if v}), 1)}
        self._numbers = {form: n for value, n in self._whole.items() for form in _forms(value)}
        # the longest match wins
        ordered = sorted(self._numbers, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self.byte_forms = tuple(form.encode("utf-8", "surrogateescape") for form in ordered)

    @functools.cached_property
    def byte_pattern(self) -> re.Pattern[bytes]:
        """What matches the secrets in bytes."""
        return re.compile(b"|".join(map(re.escape, self.byte_forms)))

    def redact_text(self, value: str) -> str:
        """Return a string without the secrets that it holds."""
        if value in self._whole:
            return self.MARK
        return self._pattern.sub(self.MARK, value) if self._pattern is not None else value

    def redact_path(self, path: str) -> str:
        """Return the path of an artifact without the secrets in its names.

        The first folder is the run's own. Different secrets give different names.
        """
        top, *names = path.split("/")
        return "/".join([top, *map(self.redact_file_name, names)])

    def redact_file_name(self, name: str) -> str:
        """Return the name of an artifact without the secrets that it holds."""
        if name in self._whole:
            return f"redacted-{self._whole[name]}"
        if self._pattern is None:
            return name
        return self._pattern.sub(lambda match: f"redacted-{self._numbers[match[0]]}", name)

    def redact_bytes(self, data: bytes) -> bytes:
        """Return bytes without the secrets that they hold as UTF-8."""
        return self.byte_pattern.sub(self.MARK.encode(), data) if self.byte_forms else data

    def redact_record(self, record: Mapping[str, Any], user_data: Iterable[str]) -> dict[str, Any]:
        """Return a record without the secrets in what users gave or their code produced.

        The rest of it stays: a password may be an ordinary word, such as `experiment`, and the
        record has to be readable all the same.

        Args:
            record: JSON with the record's own keys.
            user_data: The fields to search, such as `results`; `error.message` is a field of an
                object, or of each object in a list. `config.*` means the values in the object,
                whose keys name fields: those that are words are kept.
        """
        redacted = dict(record)
        for field in user_data:
            name, _, inner = field.partition(".")
            value = redacted.get(name)
            if inner not in ("", "*"):
                if isinstance(value, Mapping):
                    redacted[name] = self.redact_record(value, (inner,))
                elif isinstance(value, list | tuple):
                    redacted[name] = [self.redact_record(item, (inner,)) for item in value]
            elif name in redacted:
                redacted[name] = self._redact(value, keeps_names=inner == "*")
        return redacted

    def redact_json(self, data: Any) -> Any:
        """Return JSON without the secrets in its strings and keys.

        The type of an encoded value is kept, for it is needed to read the value. The path of an
        artifact is that of `redact_path`.
        """
        return self._redact(data, keeps_names=False)

    def _redact(self, data: Any, *, keeps_names: bool) -> Any:
        if not self._whole:
            return data
        if isinstance(data, str):
            return self.redact_text(data)
        if isinstance(data, list | tuple):
            return [self._redact(item, keeps_names=keeps_names) for item in data]
        if not isinstance(data, Mapping):
            return data
        if TYPE_KEY in data:
            return self._redact_typed(data)
        redacted: dict[Any, Any] = {}
        for key, item in data.items():
            is_name = keeps_names and isinstance(key, str) and _WORD.fullmatch(key)
            clean = name = self.redact_text(key) if isinstance(key, str) and not is_name else key
            while clean != key and clean in redacted:  # two keys held secrets: keep both
                clean = f"{name} ({len(redacted)})"
            redacted[clean] = self._redact(item, keeps_names=keeps_names)
        return redacted

    def _redact_typed(self, data: Mapping[str, Any]) -> Any:
        """Redact one value for which JSON has no type, such as bytes, an array or a table."""
        if data[TYPE_KEY] in FILE_TYPES and isinstance(data.get("path"), str):
            rest = {key: item for key, item in data.items() if key != "path"}
            return {**self._redact_fields(rest), "path": self.redact_path(data["path"])}
        redacted = self._redact_fields(data)
        if redacted != data and not any(isinstance(item, dict | list) for item in data.values()):
            return self.MARK  # what is left of it can't be decoded
        return redacted

    def _redact_fields(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._redact_typed_field(key, item) for key, item in data.items()}

    def _redact_typed_field(self, key: str, item: Any) -> Any:
        if key in _TYPE_FIELDS:
            return item
        if key in ("columns", "levels"):  # of a table
            return [self._redact_typed_field("", column) for column in item]
        if isinstance(item, Mapping) and TYPE_KEY not in item and key != "attrs":
            return self._redact_fields(item)
        return self.redact_json(item)


def _forms(value: str) -> Iterator[str]:
    """Yield the forms in which a secret may show up in a log or a record."""
    if len(value) < _MIN_PART_LENGTH:
        return
    raw = value.encode("utf-8", "surrogateescape")
    yield value
    # a key in several lines may be printed line by line
    lines = [line.strip() for line in value.splitlines()]
    yield from (line for line in lines if len(line) >= _MIN_LINE_LENGTH and line != value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield quote(raw)
    yield quote(raw, safe="")
    yield quote_plus(raw)
    # a header such as `Basic base64(user:token)` shifts the value by 0, 1 or 2 bytes
    for shift in range(3):
        start = -(-shift * 8 // 6)
        end = (shift + len(raw)) * 8 // 6
        encoded = base64.b64encode(bytes(shift) + raw).decode("ascii")[start:end]
        if len(encoded) >= _MIN_BASE64_LENGTH:
            yield encoded
            yield encoded.replace("+", "-").replace("/", "_")
