"""Keeps secrets out of records and logs: their values are replaced wherever they stand."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

# a shorter value would be found inside ordinary words; as a whole value it's still replaced
_SHORTEST_PART = 6
_SHORTEST_BASE64 = 8
_SHORTEST_LINE = 12


class Redactor:
    """Replaces known secret values, also in their JSON, URL and base64 forms, by `MARK`."""

    MARK = "<redacted>"

    def __init__(self, values: Iterable[str]) -> None:
        self._whole = {value for value in values if value}
        forms = {form for value in self._whole for form in _forms(value)}
        ordered = sorted(forms, key=lambda form: (-len(form), form))  # the longest match wins
        self._text = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self.byte_forms = tuple(form.encode("utf-8", "surrogateescape") for form in ordered)
        self.byte_pattern = re.compile(b"|".join(map(re.escape, self.byte_forms)))

    def redact_text(self, text: str) -> str:
        """Return a text without the secrets that it holds."""
        if text in self._whole:
            return self.MARK
        return self._text.sub(self.MARK, text) if self._text is not None else text

    def redact_bytes(self, data: bytes) -> bytes:
        """Return bytes without the secrets that they hold as UTF-8."""
        return self.byte_pattern.sub(self.MARK.encode(), data) if self.byte_forms else data

    def redact_json(self, data: Any) -> Any:
        """Return JSON without the secrets in its texts and keys."""
        if not self._whole:
            return data
        if isinstance(data, str):
            return self.redact_text(data)
        if isinstance(data, list | tuple):
            return [self.redact_json(item) for item in data]
        if not isinstance(data, dict):
            return data
        redacted: dict[Any, Any] = {}
        for key, item in data.items():
            clean = name = self.redact_text(key) if isinstance(key, str) else key
            while clean != key and clean in redacted:  # two keys held secrets: keep both
                clean = f"{name} ({len(redacted)})"
            redacted[clean] = self.redact_json(item)
        if _is_encoded_value(data) and redacted != data:
            return self.MARK  # what is left of it can't be decoded
        return redacted


def _is_encoded_value(data: dict[Any, Any]) -> bool:
    """Return whether this stands for one value that JSON has not, such as bytes."""
    return "$type" in data and not any(isinstance(item, dict | list) for item in data.values())


def _forms(value: str) -> Iterator[str]:
    """Yield the texts under which a secret may show up in a log or a record."""
    if len(value) < _SHORTEST_PART:
        return
    raw = value.encode("utf-8", "surrogateescape")
    yield value
    # a key in several lines may be printed line by line
    lines = [line.strip() for line in value.splitlines()]
    yield from (line for line in lines if len(line) >= _SHORTEST_LINE and line != value)
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
        if len(encoded) >= _SHORTEST_BASE64:
            yield encoded
            yield encoded.replace("+", "-").replace("/", "_")
