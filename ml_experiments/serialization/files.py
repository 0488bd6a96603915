"""Writing files so that a reader sees the old content or the new, never a part; strict JSON."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

# as open_atomically names a file until it is whole
_TEMPORARY_NAME = re.compile(r"\.ml-experiments-[0-9a-f]{16}\.tmp")
_MAX_SINGLE_SYNCS = 16


@contextlib.contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its name, by a rename, once the block has ended well.

    Args:
        path: The file.
        durable: Whether file and name have to outlive a power cut too (fsync).

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    temporary = path.parent / f".ml-experiments-{secrets.token_hex(8)}.tmp"
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


def is_temporary(name: str) -> bool:
    """Return whether a file has the name of one that `open_atomically` has not finished."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_temporary_files(folder: Path) -> None:
    """Remove what `open_atomically` left in a folder, and below it, when its process was killed.

    Nothing may be writing there. What can't be removed is left.
    """
    for parent, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            with contextlib.suppress(OSError):
                (Path(parent) / name).unlink()


def sync_files(files: Sequence[Path]) -> None:
    """Let files of one folder, their names and that of the folder outlive a power cut.

    Raises:
        OSError: If the disk did not take all of their content.
    """
    if not files:
        return
    folder = files[0].parent
    if len(files) > _MAX_SINGLE_SYNCS and _sync_file_system(folder):
        return
    for file in files:
        _sync(file)
    for parent in (folder, folder.parent):
        _sync_folder(parent)


def _sync_file_system(folder: Path) -> bool:
    """Write all of a file system to its disk, where the system can; return whether it could."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) == 0:
            return True
    finally:
        os.close(descriptor)
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        _sync(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary neighbour, fsync and rename.

    Raises:
        OSError: If it can't be written; the old file is then untouched.
    """
    with open_atomically(path) as file:
        file.write(content)


def write_json_atomically(path: Path, data: Any, *, durable: bool = True) -> None:
    """Write strict JSON atomically; see `open_atomically`."""
    encoded = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    with open_atomically(path, durable=durable) as file:
        file.write(encoded.encode("utf-8", "backslashreplace") + b"\n")


def parse_strict_json(encoded: str) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: If it isn't JSON, or holds a number that can't be written as JSON again.
        RecursionError: If it's nested too deeply.
    """
    return _STRICT.decode(encoded)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if abs(number) > sys.float_info.max:
        raise ValueError(f"{digits} is more than a float holds")
    return number


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_parse_float)
