"""The hashes of a folder's files, in the file SHA256SUMS, which `sha256sum -c` reads too."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ml_experiments.serialization.files import open_atomically

FILE_NAME = "SHA256SUMS"
_AT_A_TIME = 8
_CHUNK = 1 << 20
# of a name, as sha256sum writes it: then the line begins with a backslash
_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def hash_file(path: Path, ends_at: float = float("inf")) -> str | None:
    """Return the SHA-256 of a file; None if it takes longer than until then.

    Args:
        path: The file.
        ends_at: When to give up, as `time.monotonic()`.

    Raises:
        OSError: If it can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            if time.monotonic() > ends_at:
                return None
            digest.update(chunk)
    return digest.hexdigest()


def write_checksums(folder: Path, names: Iterable[str], limit_s: float) -> None:
    """Write the hashes of files; what can't be read, or takes too long, is left out.

    Args:
        folder: The folder, which gets the file SHA256SUMS; without names, it has none.
        names: The files, relative to it.
        limit_s: How long to go on.

    Raises:
        OSError: If the file can't be written.
    """
    names, ends_at = sorted(names), time.monotonic() + limit_s
    if not names:
        (folder / FILE_NAME).unlink(missing_ok=True)
        return

    def line_of(name: str) -> bytes:
        with contextlib.suppress(OSError):
            digest = hash_file(folder / name, ends_at)
            return b"" if digest is None else _line(digest, name)
        return b""

    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        content = b"".join(threads.map(line_of, names))
    with open_atomically(folder / FILE_NAME, durable=False) as file:
        file.write(content)


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the hash of each file that SHA256SUMS names; lines that are damaged are left out."""
    try:
        lines = (folder / FILE_NAME).read_bytes().split(b"\n")
    except OSError:
        return {}
    found = {}
    for line in lines:
        digest, space, name = line.partition(b"  ")
        if digest.startswith(b"\\"):
            digest, name = digest[1:], _unescaped(name)
        if space and name and len(digest) == 2 * hashlib.sha256().digest_size:
            found[os.fsdecode(name)] = digest.decode("ascii", "replace")
    return found


def _line(digest: str, name: str) -> bytes:
    raw = escaped = os.fsencode(name)
    for byte, escape in _ESCAPES:
        escaped = escaped.replace(byte, escape)
    start = b"\\" if escaped != raw else b""
    return start + digest.encode("ascii") + b"  " + escaped + b"\n"


def _unescaped(name: bytes) -> bytes:
    parts = name.split(b"\\\\")  # a pair stands for one, and begins no other escape
    return b"\\".join(part.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for part in parts)
