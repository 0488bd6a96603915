"""What an experiment is, and what it can use while it runs."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic


class ExperimentConfig(pydantic.BaseModel):
    """Base of an experiment's config: unknown keys are errors, values don't change later."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Experiment:
    """Base class that buys validation before spending, warm reuse and a typed config.

    Any class with `__init__(config)` and `run()` is an experiment too; deriving from this
    one adds `Config` (checked before anything starts) and `setup()` (kept for later runs
    while the class and the values of `setup_fields` stay the same).

    Attributes:
        setup_fields: The fields of the config that `setup()` depends on. Without them it may
            depend on all, and on the seed; so may a class with an `__init__` of its own on all.
    """

    Config: ClassVar[type[pydantic.BaseModel]]
    setup_fields: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, config: Any) -> None:
        self.config = config

    def setup(self) -> None:
        """Do what is expensive and depends only on `setup_fields`, such as loading a model."""

    def run(self) -> Any:
        """Run once and return results."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")
