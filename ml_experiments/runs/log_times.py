"""When the lines of a run's log were printed, to the second: for `runs logs --since`.

Lines are counted, not bytes: secrets are taken out of a log at the end, which moves the bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ml_experiments.errors import RunFolderError

_FILE = ".log-times"
_EVERY_S = 1.0
_CHUNK = 1 << 20


class LogTimes:
    """Records in a run folder when its log grew; begins where the log ends now.

    Args:
        log_file: The log.
    """

    def __init__(self, log_file: Path) -> None:
        self._file = log_file.with_name(_FILE)
        self._lines = 0
        self._next_at = 0.0
        with contextlib.suppress(OSError):  # no log yet
            self._lines = sum(chunk.count(b"\n") for chunk in _chunks(log_file))

    def note(self, data: bytes) -> None:
        """Note that something was printed just now."""
        if data and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _EVERY_S
            with contextlib.suppress(OSError), self._file.open("a", encoding="ascii") as file:
                # on a line of its own, also after one that a kill cut short
                file.write(f"\n{time.time():.3f} {self._lines}\n")
        self._lines += data.count(b"\n")


def offset_since(log_file: Path, since: float) -> int:
    """Return where in a log begins what was printed since then, in bytes.

    Args:
        log_file: The log.
        since: Unix time; up to a second of what was printed before is included.

    Raises:
        RunFolderError: If the log is not readable, or it was not recorded when it grew.
    """
    try:
        size = log_file.stat().st_size
        times = list(_read_times(log_file.with_name(_FILE)))
        if size and not times:
            raise RunFolderError(
                f"when {log_file} was written is not recorded, as for a run with --debug; "
                "leave out --since"
            )
        line = next((line for at, line in times if at > since - _EVERY_S), None)
        return size if line is None else _offset_of(line, log_file)
    except OSError as e:
        raise RunFolderError(f"{log_file} is not readable: {e.strerror}") from e


def _read_times(file: Path) -> Iterator[tuple[float, int]]:
    """Yield a time, and the first line that was printed then or later."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as entries:
        for entry in entries:
            with contextlib.suppress(ValueError):  # empty, or cut short by a kill
                at, line = entry.split()
                yield float(at), int(line)


def _offset_of(line: int, file: Path) -> int:
    offset = 0
    for chunk in _chunks(file):
        count = chunk.count(b"\n")
        if line <= count:
            rest = chunk.split(b"\n", line)[line] if line else chunk
            return offset + len(chunk) - len(rest)
        line -= count
        offset += len(chunk)
    return offset


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            yield chunk
