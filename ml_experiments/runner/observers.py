"""Shows what runs print and how far they are, where their caller has given no observer."""

from __future__ import annotations

import atexit
import math
import sys
import threading

from typing_extensions import override

from ml_experiments.execution.observer import GuardedObserver, Observer
from ml_experiments.runner.plain_screen import PlainScreen, Screen, ShownRun, is_terminal
from ml_experiments.runner.printable import printable, printable_lines
from ml_experiments.runner.terminal_rows import TerminalRows
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import has_dumb_terminal, wants_colours


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
            colours = wants_colours() and not (is_terminal(sys.stdout) and has_dumb_terminal())
            name, is_debugged = printable(spec.name or spec.run_id), spec.backend == "debug"
            run = ShownRun(name, TerminalRows(colours=colours), is_debugged)
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
        terminals = [stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)]
        is_debugged = any(run.is_debugged for run in self._runs.values())
        if not terminals or has_dumb_terminal() or is_debugged:
            return PlainScreen(sys.stdout, sys.stderr)
        # not needed in a pipe, and slow to import
        from ml_experiments.runner.live_display import LiveScreen

        return LiveScreen(terminals[0], self._runs, self._lock)

    def _close(self) -> None:
        with self._lock:
            screen, self._screen = self._screen, None
            if screen is not None:
                screen.close()


DISPLAY = Display()  # one for all runs of this process, so that it knows how many are live
atexit.register(DISPLAY._close)  # so that the terminal is left as it was


def guarded(observer: Observer | None) -> Observer:
    """Return what receives the events of one run: the given observer, or the display; guarded."""
    return GuardedObserver(observer or DISPLAY)
