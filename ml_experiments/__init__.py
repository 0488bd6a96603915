"""Run any ML experiment class on Modal GPUs, or on this machine, with one call."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_experiments.backends.base import Observer
    from ml_experiments.backends.local.backend import LocalBackend
    from ml_experiments.errors import BackendError, ConfigError, Error, RunFailedError, SoftTimeout
    from ml_experiments.experiment.base import Experiment, ExperimentConfig, current_run
    from ml_experiments.runner.run import run_experiment, submit_experiment
    from ml_experiments.runs.spec import (
        Artifact,
        ErrorKind,
        RunError,
        RunResult,
        RunSpec,
        RunStatus,
    )

__version__ = "0.1.0"

# name -> module; imported on first use, so that `import ml_experiments` costs nothing
_HOMES = {
    "Artifact": "runs",
    "ConfigError": "errors",
    "BackendError": "errors",
    "Error": "errors",
    "ErrorKind": "runs",
    "Experiment": "experiment",
    "ExperimentConfig": "experiment",
    "LocalBackend": "backends.local_backend",
    "Observer": "backends.base",
    "RunError": "runs",
    "RunFailedError": "errors",
    "RunResult": "runs",
    "RunSpec": "runs",
    "RunStatus": "runs",
    "SoftTimeout": "errors",
    "current_run": "experiment",
    "run_experiment": "runner",
    "submit_experiment": "runner",
}

__all__ = [
    "Artifact",
    "BackendError",
    "ConfigError",
    "Error",
    "ErrorKind",
    "Experiment",
    "ExperimentConfig",
    "LocalBackend",
    "Observer",
    "RunError",
    "RunFailedError",
    "RunResult",
    "RunSpec",
    "RunStatus",
    "SoftTimeout",
    "current_run",
    "run_experiment",
    "submit_experiment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
