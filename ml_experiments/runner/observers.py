"""Shows what runs print and how far they are, where their caller has given no observer."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from typing_extensions import override

from ml_experiments.execution.observer import GuardedObserver, Observer
from ml_experiments.runner.printable import printable, printable_lines
from ml_experiments.runner.terminal_rows import TerminalRows
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

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
    """

    name: str
    rows: TerminalRows
    is_debugged: bool
    prefix: str = ""
    done: float | None = None
    total: float | None = None
    text: str = ""
    started_at: float = field(default_factory=time.monotonic)

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


class Display(Observer):
    """Shows runs on the terminal or, without one, on the standard streams.

    Lines have a prefix once several runs are live; a run that has one keeps it to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._runs: dict[str, ShownRun] = {}
        self._screen: Screen | None = None

    @override
    def started(self, spec: RunSpec) -> None:
        with self._lock:
            self._open(spec)

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        with self._lock:
            screen = self._screen or PlainScreen(sys.stdout, sys.stderr)
            screen.notice(printable_lines(text))

    @override
    def log(self, spec: RunSpec, data: bytes) -> None:
        if not data:
            return
        with self._lock:
            run, screen = self._open(spec)
            lines = run.rows.feed(data.decode("utf-8", "backslashreplace"))
            growing = "" if run.prefix else run.rows.growing
            screen.show(run, [run.prefix + line for line in lines], growing)

    @override
    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        with self._lock:
            run, screen = self._open(spec)
            run.done, run.text = done, printable(text)
            run.total = total if total and math.isfinite(total) and math.isfinite(done) else None
            screen.progress(run)

    @override
    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self.forget(spec.run_id)

    def forget(self, run_id: str) -> None:
        """Show a run no longer; nothing happens if it isn't shown."""
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None or self._screen is None:
                return
            self._screen.show(run, [run.prefix + line for line in run.rows.end()], "")
            if not self._runs:
                self._close()

    def _open(self, spec: RunSpec) -> tuple[ShownRun, Screen]:
        run = self._runs.get(spec.run_id)
        if run is None:
            name, is_debugged = printable(spec.name or spec.run_id), spec.backend == "debug"
            run = ShownRun(name, TerminalRows(colours=_shows_colours(sys.stdout)), is_debugged)
            self._runs[spec.run_id] = run
            if is_debugged:
                self._close()
            if len(self._runs) > 1:
                for each in self._runs.values():
                    each.prefix = f"[{each.name}] "
        if self._screen is None:
            self._screen = self._new_screen()
        return run, self._screen

    def _new_screen(self) -> Screen:
        terminals = [s for s in (sys.stdout, sys.stderr) if is_terminal(s) and not _is_dumb()]
        if not terminals or any(run.is_debugged for run in self._runs.values()):
            return PlainScreen(sys.stdout, sys.stderr)
        # not needed in a pipe, and slow to import
        from ml_experiments.runner.live_display import LiveScreen

        return LiveScreen(terminals[0], self._runs, self._lock)

    def _close(self) -> None:
        with self._lock:
            screen, self._screen = self._screen, None
            if screen is not None:
                screen.close()


class PlainScreen:
    """Pipes, files, notebooks: output as it comes, and progress as a line at every tenth.

    Of a line that a program writes again and again, as progress bars do, the last state is shown.

    Args:
        out: For what runs print.
        err: For notices and progress.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._unfinished: tuple[ShownRun, str] | None = None  # what the output ends with
        self._shares: dict[int, float] = {}

    def show(self, run: ShownRun, lines: Sequence[str], growing: str) -> None:
        """Write what is new."""
        pieces = []
        for line in lines:
            pieces.append(self._rest_of(line, run) + "\n")
            self._unfinished = None
        if growing:
            pieces.append(self._rest_of(growing, run))
            self._unfinished = run, growing
        write(self._out, "".join(pieces))

    def notice(self, string: str) -> None:
        """Write it to standard error."""
        if self._unfinished and _are_one_file(self._out, self._err):
            write(self._out, "\n")
            self._unfinished = None
        write(self._err, f"{string}\n")

    def progress(self, run: ShownRun) -> None:
        """Write how far the run is, when it's a tenth further than the last time."""
        if not run.total or run.done is None:
            return
        share, shown = run.done / run.total, self._shares.get(id(run), 0.0)
        if share < shown:  # a new stage counts from the start
            shown = self._shares[id(run)] = 0.0
        if share - shown >= _STEP_SHARE or share >= 1:
            self._shares[id(run)] = share
            self.notice(f"{run.name}: {run.count} {run.text}".rstrip())

    def close(self) -> None:
        """Leave all as it is."""

    def _rest_of(self, line: str, run: ShownRun) -> str:
        """Return what is to be written for a line whose beginning may have been."""
        if self._unfinished is None:
            return line
        owner, written = self._unfinished
        is_begun = owner is run and line.startswith(written)
        return line[len(written) :] if is_begun else f"\n{line}"


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


def _is_dumb() -> bool:
    """Return whether the terminal obeys no escape sequences."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def _shows_colours(stream: TextIO | None) -> bool:
    return not os.environ.get("NO_COLOR") and not (is_terminal(stream) and _is_dumb())


def _are_one_file(one: TextIO | None, other: TextIO | None) -> bool:
    try:
        return one is other or os.path.sameopenfile(one.fileno(), other.fileno())  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):  # in memory, or None
        return False


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


DISPLAY = Display()  # one for all runs of this process, so that it knows how many are live
atexit.register(DISPLAY._close)  # so that the terminal is left as it was


def guarded(observer: Observer | None) -> Observer:
    """Return what receives the events of one run: the given observer, or the display; guarded."""
    return GuardedObserver(observer or DISPLAY)
