"""Keeps secrets out of records and logs: their values are replaced wherever they stand."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, quote_plus

from ml_experiments.serialization.files import open_atomically

# a shorter value would be found inside ordinary words; as a whole value it's still replaced
_SHORTEST_PART = 6
_SHORTEST_BASE64 = 8
_SHORTEST_LINE = 12
_CHUNK = 1024 * 1024


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


class StreamRedactor:
    """Redacts bytes that arrive in pieces; a secret may be split over several.

    Only bytes that may turn out to be the beginning of a secret are held back.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""
        forms = redactor.byte_forms
        self._longest = max(map(len, forms), default=0)
        firsts = b"".join(re.escape(first) for first in {form[:1] for form in forms})
        self._first = re.compile(b"[" + firsts + b"]") if firsts else None

    def feed(self, data: bytes) -> bytes:
        """Take the next piece and return what is certain to hold no part of a secret."""
        if self._first is None:
            return data
        data, clean = self._held + data, []
        while True:
            held_from = self._held_from(data)
            end = 0
            for match in self._redactor.byte_pattern.finditer(data):
                if match.start() >= held_from:
                    break
                clean += [data[end : match.start()], Redactor.MARK.encode()]
                end = match.end()
            if end <= held_from:
                self._held = data[held_from:]
                return b"".join([*clean, data[end:held_from]])
            data = data[end:]  # a secret covered what looked like the beginning of another

    def flush(self) -> bytes:
        """Return what was held back; the stream has ended, or pauses."""
        held, self._held = self._held, b""
        return self._redactor.redact_bytes(held)

    def _held_from(self, data: bytes) -> int:
        assert self._first is not None
        for match in self._first.finditer(data, max(0, len(data) - self._longest + 1)):
            rest = data[match.start() :]
            if any(len(form) > len(rest) and form.startswith(rest) for form in self._forms):
                return match.start()
        return len(data)

    @property
    def _forms(self) -> tuple[bytes, ...]:
        return self._redactor.byte_forms


def redact_file(path: Path, redactor: Redactor) -> None:
    """Rewrite a file without the secrets that it holds; one without any is left alone.

    Raises:
        OSError: If it can't be read or written; it is then unchanged.
    """
    if not redactor.byte_forms:
        return
    with path.open("rb") as file:
        if not _holds_secret(file, redactor):
            return
        file.seek(0)
        stream = StreamRedactor(redactor)
        with open_atomically(path) as out:
            for chunk in _chunks(file):
                out.write(stream.feed(chunk))
            out.write(stream.flush())


def _holds_secret(file: BinaryIO, redactor: Redactor) -> bool:
    overlap = max(map(len, redactor.byte_forms)) - 1
    before = b""
    for chunk in _chunks(file):
        data = before + chunk
        if redactor.byte_pattern.search(data):
            return True
        before = data[-overlap:] if overlap else b""
    return False


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


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
