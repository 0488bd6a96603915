"""What a running experiment can use: `current_run()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import Error


@dataclass(frozen=True)
class RunContext:
    """What a running experiment can ask for and report to.

    Attributes:
        seed: The run's seed; random, numpy and torch are already seeded with it.
    """

    run_id: str
    _output_dir: Path
    _checkpoint_dir: Path
    seed: int
    _log: Callable[[Mapping[str, Any], int | None], None]
    _progress: Callable[[float, float | None, str], None]

    @property
    def output_dir(self) -> Path:
        """Files written here are the run's artifacts; made when it's first asked for."""
        self._output_dir.mkdir(exist_ok=True)
        return self._output_dir

    @property
    def checkpoint_dir(self) -> Path:
        """State from which the same run resumes, also at retries; made when first asked for."""
        self._checkpoint_dir.mkdir(exist_ok=True)
        return self._checkpoint_dir

    @property
    def device(self) -> str:
        """The best device that this run may use, as torch names it: `cuda`, `mps` or `cpu`."""
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def log(self, metrics: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record metrics, at a step when there is one.

        Raises:
            UnportableResultError: If a value can't be represented; it names the metric.
        """
        self._log(metrics, step)

    def progress(self, done: float, total: float | None = None, *, text: str = "") -> None:
        """Say how far the run is; shown live, not recorded."""
        self._progress(done, total, text)


_current: RunContext | None = None


def current_run() -> RunContext:
    """Return the run that this process executes.

    Raises:
        Error: If no run is executing in this process.
    """
    if _current is None:
        raise Error(
            "current_run() has a value only while an experiment runs; start one with "
            "run_experiment(...) or `ml-experiments run`"
        )
    return _current


def set_current_run(context: RunContext | None) -> None:
    """Say which run this process executes; for `execution` only."""
    global _current
    _current = context
