"""A terminal that shows runs live: their output and, below it, what changes."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.control import Control
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment, Segments
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text
from typing_extensions import override

from ml_experiments.runner.display.plain_screen import PlainScreen, ShownRun, is_terminal, write
from ml_experiments.runner.display.terminal_rows import TerminalRows

_REFRESH_S = 0.1
_MAX_BAR_WIDTH = 40
# of an unfinished line that is longer, the end is shown
_MAX_UNFINISHED = 4096


class LiveScreen:
    """Unfinished lines and a status line for each run, redrawn below what is printed.

    Everything that this process prints while it's open goes through it. rich's own `Live` isn't
    used: it is confused by threads that print while it refreshes, and by a terminal that gets
    narrower.

    Args:
        terminal: Standard output if that is a terminal, else standard error.
        runs: The runs that are live; changed by the owner, who holds the lock.
        lock: Held while the runs or the terminal change.
    """

    def __init__(
        self, terminal: TextIO, runs: Mapping[str, ShownRun], lock: threading.RLock
    ) -> None:
        self._terminal, self._runs, self._lock = terminal, runs, lock
        self._console = Console(file=terminal, force_terminal=True)
        self._plain = PlainScreen(sys.stdout, sys.stderr)
        self._shows_output = is_terminal(sys.stdout)
        self._shows_notices = is_terminal(sys.stderr)
        self._spinner = Spinner("line" if self._console.options.ascii_only else "dots")
        self._widths: list[int] = []  # of the lines below the output
        self._ended = threading.Event()
        self._measure()
        # whatever stands on the cursor's line stays: so many spaces reach the next line, if any
        write(terminal, " " * self._console.width + "\r")
        self._redirected = [
            _Redirected(name, stream, self)
            for name in ("stdout", "stderr")
            if is_terminal(stream := getattr(sys, name))
        ]
        threading.Thread(target=self._refresh, daemon=True, name="live-display").start()

    def show(self, run: ShownRun, lines: Sequence[str], growing: str) -> None:
        """Print lines above what changes; an unfinished one is part of that."""
        if self._shows_output:
            self.print(lines)
        else:
            self._plain.show(run, lines, growing)

    def notice(self, string: str) -> None:
        """Print a line."""
        if self._shows_notices:
            self.print([string])
        else:
            self._plain.notice(string)

    def progress(self, run: ShownRun) -> None:
        """Do nothing: the next refresh shows it."""

    def print(self, lines: Sequence[str]) -> None:
        """Print lines above what changes."""
        if lines:
            self._draw("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Take away what is below the output, and give the standard streams back."""
        self._ended.set()
        self._draw("")
        for stream in self._redirected:
            stream.give_back()

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._ended.is_set()

    @property
    def lock(self) -> threading.RLock:
        """The lock that is held while the terminal changes."""
        return self._lock

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_S):
            with self._lock:
                if not self.is_closed:
                    try:
                        self._draw("")
                    except OSError:  # the terminal is gone
                        return

    def _measure(self) -> None:
        """Take the terminal's size as it is now, whatever COLUMNS says, which may be inherited."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._terminal.fileno())
            if all(size):
                self._console.size = ConsoleDimensions(*size)

    def _draw(self, above: str) -> None:
        """Print a string of whole lines in place of what is below the output, and that again."""
        self._measure()
        options = self._console.options
        narrower = options.update(width=max(1, options.max_width - 1), height=None)
        below = (
            []
            if self.is_closed
            else self._console.render_lines(
                Group(*self._below(options.max_width)), narrower, pad=False
            )
        )
        below = [line for line in below if line][-max(1, options.size.height - 1) :]
        # a terminal that has got narrower has broken the lines that were wider
        rows = sum(max(1, -(-width // options.max_width)) for width in self._widths)
        erase: list[Any] = [ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)]
        erase += [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (rows - 1)
        segments = [Segment(above)]
        for index, line in enumerate(below):
            segments += [Segment.line()] * (index > 0) + line
        encoding = self._console.encoding
        encodable = (
            Segment(text.encode(encoding, "backslashreplace").decode(encoding), style)
            for text, style, _ in segments
        )
        self._widths = [Segment.get_line_length(line) for line in below]
        self._console.print(Control(*erase), Segments(encodable), soft_wrap=True, end="")

    def _below(self, width: int) -> Iterator[RenderableType]:
        for stream in self._redirected:
            yield from (_text(row, width) for row in stream.rows.unfinished)
        if self._shows_output:
            for run in self._runs.values():
                yield from (_text(run.prefix + row, width) for row in run.rows.unfinished)
        yield self._status_lines(width)

    def _status_lines(self, width: int) -> Table:
        table = Table.grid(
            Column(),
            Column(no_wrap=True, overflow="ellipsis", max_width=max(10, width // 3)),
            Column(),
            Column(no_wrap=True),
            Column(no_wrap=True, overflow="ellipsis", max_width=max(10, width // 3)),
            Column(no_wrap=True),
            padding=(0, 1, 0, 0),
        )
        for run in self._runs.values():
            bar: RenderableType = ""
            if run.total and run.done is not None:
                bar_width = min(_MAX_BAR_WIDTH, width // 5)
                bar = ProgressBar(run.total, max(0.0, run.done), width=bar_width)
            seconds = int(time.monotonic() - run.started_at)
            table.add_row(
                self._spinner,
                Text(run.name),
                bar,
                Text(run.count, "progress.download"),
                Text(run.text),
                Text(str(datetime.timedelta(seconds=seconds)), "progress.elapsed"),
            )
        return table


class _Redirected(io.TextIOBase):
    """Stands for a standard stream while the screen is open, also in logging's handlers."""

    def __init__(self, name: str, stream: TextIO, screen: LiveScreen) -> None:
        self._name, self._stream, self._screen = name, stream, screen
        self.rows = TerminalRows(colours=True)
        self._set(self._stream, self)

    def give_back(self) -> None:
        """Put the stream itself back in place."""
        self._set(self, self._stream)
        write(self._stream, "".join(self.rows.unfinished[-1:]))

    def _set(self, previous: object, stream: Any) -> None:
        if getattr(sys, self._name) is previous:
            setattr(sys, self._name, stream)
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is previous:
                handler.setStream(stream)

    @override
    def write(self, string: str) -> int:
        with self._screen.lock:
            if self._screen.is_closed:
                return self._stream.write(string)
            self._screen.print(self.rows.feed(string))
        return len(string)

    @override
    def flush(self) -> None:
        if self._screen.is_closed:
            self._stream.flush()

    @override
    def isatty(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return self._stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _text(row: str, width: int) -> Text:
    """Return an unfinished row to draw: of a long one the end, which fits on three lines."""
    text = Text.from_ansi(row[-_MAX_UNFINISHED:])
    return text if len(text) <= 3 * width else text[-3 * width :]
