"""What a rank prints: it goes to a file of its own, and from there to the log, line by line."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable

_CHUNK = 1 << 20
# a progress bar ends its line with a carriage return; after the last one, a newline may follow
_LINE = re.compile(rb"[^\n\r]*(?:\r\n|\n|\r(?!\Z))")


class RankOutput:
    """The output of one rank, as it comes.

    The kernel writes it to a file without a name, so that a rank that is killed loses nothing and
    leaves nothing behind.

    Args:
        label: What each line in the log begins with.
        show: Shows lines: on standard output, if nothing else.
    """

    def __init__(self, label: str, show: Callable[[bytes], None] | None = None) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as this lives
        self._prefix = f"[{label}] ".encode()
        self._show_lines = show or show_here
        self._position = 0
        self._rest = b""  # of a line that has not ended

    @property
    def descriptor(self) -> int:
        """The file, for the rank to write to."""
        return self.file.fileno()

    def show_lines(self) -> bool:
        """Show whole lines; return whether there is more."""
        data = os.pread(self.descriptor, _CHUNK, self._position)
        self._position += len(data)
        text = self._rest + data
        lines = _LINE.findall(text)
        self._rest = text[sum(map(len, lines)) :]
        if len(self._rest) >= _CHUNK:  # no line is that long
            lines, self._rest = [*lines, self._rest + b"\n"], b""
        self._show(lines)
        return len(data) == _CHUNK

    def show_rest(self) -> None:
        """Show all that is left, once the rank has ended."""
        while self.show_lines():
            pass
        if self._rest:
            self._show([self._rest.rstrip(b"\r") + b"\n"])
            self._rest = b""

    def _show(self, lines: list[bytes]) -> None:
        if lines:
            self._show_lines(b"".join(self._prefix + line for line in lines))


def show_here(data: bytes) -> None:
    """Write lines to standard output."""
    with contextlib.suppress(OSError):  # a full disk
        while data:
            data = data[os.write(1, data) :]
