"""Receives live events of runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

logger = logging.getLogger(__name__)


class Observer:
    """Hears what happens in runs while it happens; every method may be left as it is.

    Methods are called from the backend's threads, one at a time for each run.

    Example:
        ```python
        from ml_experiments import Observer, current_run, run_experiment

        class Watch(Observer):
            def metrics(self, spec, metrics, step):
                print(step, metrics)

        def train():
            current_run().log({"loss": 0.5}, step=1)

        if __name__ == "__main__":
            run_experiment(train, observer=Watch())  # prints: 1 {'loss': 0.5}
        ```
    """

    def started(self, spec: RunSpec) -> None:
        """A run has started where it executes."""

    def notice(self, spec: RunSpec, text: str) -> None:
        """The backend has something to tell, such as where to watch the run."""

    def log(self, spec: RunSpec, data: bytes) -> None:
        """The experiment printed something; not always whole lines, but whole characters."""

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        """The experiment said how far it is."""

    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        """The experiment logged metrics."""

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        """A run has ended."""


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
