"""Shows runs while they execute: their output, and a progress line on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ml_experiments.runner.observers import PrintLogs
from ml_experiments.runner.printable import printable
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_STEP_SHARE = 0.1


@contextmanager
def live_display(*, quiet_stdout: bool) -> Iterator[PrintLogs]:
    """Show runs while the block executes.

    Args:
        quiet_stdout: Send even what the experiments print to standard error.
    """
    stream = sys.stderr if quiet_stdout else sys.stdout
    if not sys.stderr.isatty():
        yield PlainDisplay(stream)
        return
    # slow to import, and a command in a pipe doesn't need them
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with progress:
        yield ProgressDisplay(progress, stream)


class PlainDisplay(PrintLogs):
    """For pipes and log files: output as it is, and progress as a line at every tenth."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._progress_stream = sys.stderr  # as it is now: a debug run puts its own in its place
        self._shown: dict[str, float] = {}

    def write(self, data: bytes) -> None:
        """Write to the stream that was chosen for output."""
        if data:
            self._stream.write(data.decode("utf-8", "backslashreplace"))
            self._stream.flush()

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        """Print how far the run is, when it's a tenth further than the last time."""
        if not total:
            return
        share = done / total
        if share < self._shown.get(spec.run_id, 0.0):  # a new stage counts from the start
            self._shown[spec.run_id] = 0.0
        if share - self._shown.get(spec.run_id, 0.0) >= _STEP_SHARE or share >= 1:
            self._shown[spec.run_id] = share
            with self._lock:
                line = f"{spec.name or spec.run_id}: {done:g}/{total:g} {text}".rstrip()
                line = printable(line)
                self._progress_stream.write(f"{line}\n")


class ProgressDisplay(PrintLogs):
    """For terminals: a progress line for each run, below the output."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        super().__init__()
        self._progress = progress
        self._stream = stream
        self._lines: dict[str, TaskID] = {}
        self._unfinished = ""

    def write(self, data: bytes) -> None:
        """Print whole lines above the progress line."""
        if self._stream.isatty():
            *lines, self._unfinished = (
                self._unfinished + data.decode("utf-8", "backslashreplace")
            ).split("\n")
            for line in lines:
                self._progress.console.file.write(f"{line}\n")
            return
        self._stream.write(data.decode("utf-8", "backslashreplace"))
        self._stream.flush()

    def started(self, spec: RunSpec) -> None:
        """Show the run."""
        super().started(spec)
        self._lines[spec.run_id] = self._progress.add_task(
            printable(spec.name or spec.run_id), total=None, text=""
        )

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        """Move the run's bar."""
        line = self._lines.get(spec.run_id)
        if line is not None:
            self._progress.update(line, completed=done, total=total, text=printable(text))

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        """Take the run's line away."""
        super().finished(spec, result)
        line = self._lines.pop(spec.run_id, None)
        if line is not None:
            self._progress.remove_task(line)
        if self._unfinished:
            self.write(b"\n")
