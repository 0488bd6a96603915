"""What one run in a warm worker must not leave to the next: its working folder and environment.

What an experiment's import and its `setup()` changed stays, because they are kept as well.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from ml_experiments.execution.warm_experiment import WarmExperiment
from ml_experiments.experiment.base import Experiment
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import restore_environment, whole_environment


@dataclass(frozen=True)
class ProcessState:
    """The working folder and the environment of this process at one moment."""

    folder: str | None  # None: it had been deleted
    variables: dict[str, str]

    def restore(self) -> None:
        """Bring both back."""
        if self.folder is not None:
            with contextlib.suppress(OSError):  # deleted since
                os.chdir(self.folder)
        restore_environment(self.variables)


def read_state() -> ProcessState:
    """Return the state as it is now."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - a hot path
    except FileNotFoundError:
        folder = None
    return ProcessState(folder, whole_environment())


class StateKeeper(WarmExperiment):
    """The experiment that is kept set up, and the state of the process that goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self._state = read_state()

    def take(self, target: type[Experiment], spec: RunSpec, config: Any) -> tuple[Experiment, bool]:
        """Return an instance; the state is noted now, and again once a new one is set up."""
        instance, is_new = super().take(target, spec, config)
        self._state = read_state()
        if is_new:
            set_up = instance.setup

            def note_set_up() -> None:
                del instance.__dict__["setup"]  # the experiment's own is back
                set_up()
                self._state = read_state()

            instance.__dict__["setup"] = note_set_up
        return instance, is_new

    def drop(self) -> None:
        """Let go of the instance; what follows, if anything, is a run without `setup()`."""
        super().drop()
        self._state = read_state()

    def restore_state(self) -> None:
        """Undo what a run did to the process beyond importing and setting up."""
        self._state.restore()
