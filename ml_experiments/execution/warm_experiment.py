"""What a process keeps of an experiment from one run to the next: the instance that is set up."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.execution.process_state import ProcessState, read_state
from ml_experiments.experiment.base import Experiment


class OtherProcessNeeded(BaseException):
    """The config of a run is checked, but this process keeps what other runs need."""


@dataclass
class WarmExperiment:
    """The instance that a process keeps for runs with the same set-up key.

    Attributes:
        has_own_process: Whether the process ends with what it has set up, so that nothing of one
            set-up reaches another.
        instance: The instance; None before the first run.
        key: Its set-up key.
        models: The cached models that its `setup()` has loaded.
        state: The settings of the process after `setup()`.
        setup_s: How long `setup()` took.
    """

    has_own_process: bool = False
    instance: Experiment[Any] | None = None
    key: str | None = None
    models: tuple[UsedRevision, ...] = ()
    state: ProcessState | None = None
    setup_s: float = 0.0

    def take(
        self, target: type[Experiment[Any]], key: str | None, config: Any
    ) -> tuple[Experiment[Any], bool]:
        """Return an instance with this config, and whether it still needs `set_up()`.

        Raises:
            OtherProcessNeeded: If another instance is set up, and the check finds no mistake.
        """
        if self.instance is not None and key is not None and self.key == key:
            self.instance.config = config
            return self.instance, False
        is_in_use = self.has_own_process and self.instance is not None
        if target.check_setup is Experiment.check_setup:
            if is_in_use:
                raise OtherProcessNeeded
            self.drop()
        instance = target(config)
        instance.check_setup()
        if is_in_use:
            raise OtherProcessNeeded
        self.drop()
        return instance, True

    def set_up(self, instance: Experiment[Any], key: str | None) -> None:
        """Call `setup()`, and note the settings that the next run shall find."""
        started = time.perf_counter()
        self.instance = instance
        instance.setup()
        self.key = key
        self.setup_s = time.perf_counter() - started
        if self.key is not None:
            self.state = read_state()

    def drop(self) -> None:
        """Release the instance and the memory that it holds."""
        if self.instance is None:
            return
        self.instance, self.key, self.models, self.state = None, None, (), None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
