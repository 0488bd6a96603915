"""Writing files so that a reader sees the old content or the new, never a part; strict JSON."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its name, by a rename, once the block has ended well.

    Args:
        path: The file.
        durable: Whether file and name have to outlive a power cut too (fsync).

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary neighbour, fsync and rename.

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    with open_atomically(path) as file:
        file.write(content)


def write_json_atomically(path: Path, data: Any, *, durable: bool = True) -> None:
    """Write strict JSON atomically; see `open_atomically`."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    with open_atomically(path, durable=durable) as file:
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def parse_strict_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: If it isn't JSON, or holds a number that can't be written as JSON again.
        RecursionError: If it's nested too deeply.
    """
    return _STRICT.decode(text)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if abs(number) > sys.float_info.max:
        raise ValueError(f"{text} is more than a float holds")
    return number


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_parse_float)
