"""Observers of live runs: by default, a printer of their logs; and a guard around any other."""

from __future__ import annotations

import sys
import threading

from ml_experiments.execution.observer import GuardedObserver, Observer
from ml_experiments.runner.printable import printable, printable_lines
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec


class PrintLogs(Observer):
    """Passes on what experiments print; as whole lines with a prefix once several runs are live.

    A run that has shared the terminal keeps its prefix to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: set[str] = set()
        self._sharing: set[str] = set()
        self._rest: dict[str, bytes] = {}

    def started(self, spec: RunSpec) -> None:
        """Note which runs share the terminal."""
        with self._lock:
            self._live.add(spec.run_id)
            if len(self._live) > 1:
                self._sharing |= self._live

    def notice(self, spec: RunSpec, text: str) -> None:  # noqa: ARG002 - one terminal for all
        """Print a message of the backend to standard error."""
        with self._lock:
            sys.stderr.write(f"{printable_lines(text)}\n")

    def log(self, spec: RunSpec, data: bytes) -> None:
        """Print what the experiment printed."""
        with self._lock:
            if spec.run_id not in self._sharing:
                self.write(data)
                return
            *lines, rest = (self._rest.pop(spec.run_id, b"") + data).split(b"\n")
            prefix = _prefix(spec)
            self.write(b"".join(prefix + line + b"\n" for line in lines))
            if rest:
                self._rest[spec.run_id] = rest

    def finished(self, spec: RunSpec, result: RunResult) -> None:  # noqa: ARG002
        """Print a last line that had no end."""
        with self._lock:
            self._live.discard(spec.run_id)
            self._sharing.discard(spec.run_id)
            rest = self._rest.pop(spec.run_id, b"")
            if rest:
                self.write(_prefix(spec) + rest + b"\n")

    def write(self, data: bytes) -> None:
        """Write to standard output, whatever stands in for it."""
        if data:
            sys.stdout.write(data.decode("utf-8", "backslashreplace"))
            sys.stdout.flush()


def _prefix(spec: RunSpec) -> bytes:
    return f"[{printable(spec.name or spec.run_id)}] ".encode()


_PRINT_LOGS = PrintLogs()  # one for all runs of this process, which counts how many are live


def guarded(observer: Observer | None) -> Observer:
    """Return the given observer or, without one, a printer of logs; in a guard."""
    return GuardedObserver(observer or _PRINT_LOGS)
