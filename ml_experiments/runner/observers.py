"""What hears runs live: by default, a printer of their logs; and a guard around any other."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ml_experiments.backends.base import Observer
from ml_experiments.runs.spec import RunResult, RunSpec

logger = logging.getLogger(__name__)


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
        """Say on standard error what the backend has to tell."""
        with self._lock:
            sys.stderr.write(f"{text}\n")

    def log(self, spec: RunSpec, data: bytes) -> None:
        """Print what the experiment printed."""
        with self._lock:
            if spec.run_id not in self._sharing:
                self.write(data)
                return
            *lines, rest = (self._rest.pop(spec.run_id, b"") + data).split(b"\n")
            prefix = f"[{spec.name or spec.run_id}] ".encode()
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
                self.write(f"[{spec.name or spec.run_id}] ".encode() + rest + b"\n")

    def write(self, data: bytes) -> None:
        """Write to standard output, whatever stands in for it."""
        if data:
            sys.stdout.write(data.decode("utf-8", "backslashreplace"))
            sys.stdout.flush()


class GuardedObserver(Observer):
    """Keeps what an observer raises out of the run that it watches; for one run.

    After its first exception an observer hears nothing more but the run's end.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._is_muted = False

    def started(self, spec: RunSpec) -> None:
        """Pass on that the run has started."""
        self._tell(self._observer.started, spec)

    def notice(self, spec: RunSpec, text: str) -> None:
        """Pass on what the backend has to tell."""
        self._tell(self._observer.notice, spec, text)

    def log(self, spec: RunSpec, data: bytes) -> None:
        """Pass on what the experiment printed."""
        self._tell(self._observer.log, spec, data)

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        """Pass on how far the experiment is."""
        self._tell(self._observer.progress, spec, done, total, text)

    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        """Pass on what the experiment logged."""
        self._tell(self._observer.metrics, spec, metrics, step)

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        """Pass on that the run has ended, also to a muted observer, which may have to tidy up."""
        self._call(self._observer.finished, spec, result)

    def _tell(self, method: Callable[..., None], spec: RunSpec, *arguments: Any) -> None:
        if not self._is_muted:
            self._call(method, spec, *arguments)

    def _call(self, method: Callable[..., None], spec: RunSpec, *arguments: Any) -> None:
        try:
            method(spec, *arguments)
        except Exception as e:  # noqa: BLE001 - the user's code; the run doesn't depend on it
            if not self._is_muted:
                logger.warning(
                    "%s.%s() failed (%s: %s); run %s goes on, but its observer hears nothing more",
                    type(self._observer).__name__,
                    method.__name__,
                    type(e).__name__,
                    e,
                    spec.run_id,
                )
            self._is_muted = True


_PRINT_LOGS = PrintLogs()  # one for all runs of this process, so that it knows how many are live


def guarded(observer: Observer | None) -> Observer:
    """Return what hears one run: the given observer or, without one, a printer; and a guard."""
    return GuardedObserver(observer or _PRINT_LOGS)
