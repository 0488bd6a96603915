"""Shows runs in pipes, files and notebooks; and what every screen shows of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from ml_experiments.runner.display.terminal_rows import TerminalRows

_STEP_SHARE = 0.1


@dataclass
class ShownRun:
    """What is shown of one run.

    Attributes:
        name: Its name or id.
        rows: The end of its output.
        is_debugged: Whether it runs in this process, where a debugger may ask for input.
        prefix: What its lines begin with; empty unless it has shared the screen.
        done: How far it is; None if it has not reported that.
        total: How far it goes, if known.
        text: What it has said about that.
        started_at: When it was first seen, as `time.monotonic()`.
        written_share: The share of `total` that was last written as a line.
    """

    name: str
    rows: TerminalRows
    is_debugged: bool
    prefix: str = ""
    done: float | None = None
    total: float | None = None
    text: str = ""
    started_at: float = field(default_factory=time.monotonic)
    written_share: float = 0.0

    @property
    def count(self) -> str:
        """How far it is, such as `3/4`."""
        if self.done is None:
            return ""
        total = "" if self.total is None else f"/{_number(self.total)}"
        return f"{_number(self.done)}{total}"


class Screen(Protocol):
    """Where the output of runs is shown."""

    def show(self, run: ShownRun, lines: Sequence[str], growing: str) -> None:
        """Show finished lines of a run, and an unfinished one, if it was only added to."""

    def notice(self, string: str) -> None:
        """Show a line about a run."""

    def progress(self, run: ShownRun) -> None:
        """Show how far a run is."""

    def close(self) -> None:
        """Leave nothing but what was printed."""


class PlainScreen:
    """Pipes, files, notebooks: output as it comes, and progress as a line at every tenth.

    Of a line that a program writes again and again, as progress bars do, the last state is shown.

    Args:
        out: For what runs print.
        err: For notices and progress.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._unfinished: tuple[ShownRun, str] | None = None  # the line that was written last
        self._is_broken = False  # a notice stands below it

    def show(self, run: ShownRun, lines: Sequence[str], growing: str) -> None:
        """Write what is new."""
        pieces = []
        for line in lines:
            rest = self._rest_of(line, run)
            pieces.append("" if self._is_broken and not rest else f"{rest}\n")
            self._unfinished, self._is_broken = None, False
        if growing:
            pieces.append(rest := self._rest_of(growing, run))
            self._unfinished, self._is_broken = (run, growing), self._is_broken and not rest
        write(self._out, "".join(pieces))

    def notice(self, string: str) -> None:
        """Write it to standard error."""
        if self._unfinished and _are_one_file(self._out, self._err):
            write(self._out, "" if self._is_broken else "\n")
            self._is_broken = True
        end_line = getattr(sys.stdout, "end_line", None)  # of a run in this process
        if end_line is not None and _are_one_file(sys.stdout, self._err):
            end_line()
        write(self._err, f"{string}\n")

    def progress(self, run: ShownRun) -> None:
        """Write how far the run is, when it's a tenth further than the last time."""
        if not run.total or run.done is None:
            return
        share = run.done / run.total
        if share < run.written_share:  # a new stage counts from the start
            run.written_share = 0.0
        if share - run.written_share >= _STEP_SHARE or share >= 1:
            run.written_share = share
            self.notice(f"{run.name}: {run.count} {run.text}".rstrip())

    def close(self) -> None:
        """Leave all as it is."""

    def _rest_of(self, line: str, run: ShownRun) -> str:
        """Return what is to be written for a line whose beginning may have been."""
        if self._unfinished is None:
            return line
        owner, written = self._unfinished
        if owner is run and line.startswith(written):
            return line[len(written) :]
        return line if self._is_broken else f"\n{line}"


def write(stream: TextIO | None, string: str) -> None:
    """Write a string and flush; what the stream's encoding doesn't have is escaped."""
    if stream is None or not string:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(string.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal."""
    return bool(getattr(stream, "isatty", bool)())


def _are_one_file(one: TextIO | None, other: TextIO | None) -> bool:
    try:
        return one is other or os.path.sameopenfile(one.fileno(), other.fileno())  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):  # in memory, or None
        return False


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
