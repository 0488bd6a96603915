"""Writing files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name, through fsync and rename, once the block has ended well.

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary neighbour, fsync and rename.

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    with open_atomically(path) as file:
        file.write(content)


def write_json_atomically(path: Path, data: Any) -> None:
    """Write strict JSON atomically."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, text.encode("utf-8", "backslashreplace") + b"\n")
