"""Takes secrets out of streams and files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.serialization.files import open_atomically

_CHUNK = 1024 * 1024


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
