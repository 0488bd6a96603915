"""What a process keeps of an experiment from one run to the next: its `setup()`."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from typing import Any

from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.experiment.base import Experiment
from ml_experiments.runs.spec import RunSpec


@dataclass
class WarmExperiment:
    """The experiment that a process keeps set up from one run to the next."""

    instance: Experiment | None = None
    key: str = ""
    models: tuple[UsedRevision, ...] = ()  # what its setup() loaded

    def take(self, target: type[Experiment], spec: RunSpec, config: Any) -> tuple[Experiment, bool]:
        """Return an instance with this config, and whether it still needs `setup()`."""
        key = _setup_key(target, spec)
        if self.instance is not None and self.key == key:
            self.instance.config = config
            return self.instance, False
        self.drop()
        self.instance, self.key = target(config), key
        return self.instance, True

    def drop(self) -> None:
        """Let go of the instance and the memory that it holds."""
        if self.instance is None:
            return
        self.instance, self.key, self.models = None, "", ()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _setup_key(target: type[Experiment], spec: RunSpec) -> str:
    """Return what an instance that is set up has in common with all that may use it."""
    seed = spec.config.get("seed", spec.seed)
    parts: dict[str, Any] = {}
    if target.setup_fields is not None:
        values = {**spec.config, "seed": seed}
        parts = {name: values.get(name) for name in target.setup_fields}
    elif target.setup is not Experiment.setup:  # may depend on anything
        parts = {**spec.config, "seed": seed}
    if target.__init__ is not Experiment.__init__:  # may have kept any field of the config
        parts = {**spec.config, **parts}
    return json.dumps([spec.experiment, spec.import_paths, parts], sort_keys=True)
