"""What must be known of an experiment before it runs, worked out where it is imported."""

from __future__ import annotations

import bdb
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ml_experiments.config.secret_values import secret_config_values
from ml_experiments.config.validation import config_for, validate_config
from ml_experiments.errors import ConfigError, Error, PreflightError
from ml_experiments.execution.worker.messages import Description
from ml_experiments.experiment.base import Experiment
from ml_experiments.experiment.hub_models import named_models
from ml_experiments.experiment.importing import load_experiment
from ml_experiments.experiment.tracebacks import (
    NEEDS_TERMINAL_HINT,
    describe_debugger,
    describe_error,
    needs_terminal,
)


def describe_experiment(
    experiment: str,
    import_paths: tuple[str, ...],
    config: Any,
    seed: int,
    *,
    is_recorded: bool = False,
) -> Description:
    """Import an experiment and validate its config.

    Args:
        experiment: The class path.
        import_paths: Folders that its modules are imported from.
        config: The config as the user gave it, or as JSON of an earlier description.
        seed: The seed of the run.
        is_recorded: Whether the config is that JSON.

    Raises:
        Error: If the experiment can't be imported, or the config is not valid.
    """
    target = load_experiment(experiment, import_paths)
    name = getattr(target, "__qualname__", experiment)
    with _user_errors(f"checking the config of {name}"):
        _check_setup_fields(target)
        if is_recorded:
            values, recorded = config_for(target, config), dict(config)
        else:
            values, recorded = validate_config(target, config)
    with _user_errors(f"hub_models() of {name}"):
        models = named_models(target, values, recorded)
    return Description(
        config=recorded,
        secrets=secret_config_values(values),
        setup_key=_setup_key(target, experiment, import_paths, recorded, seed),
        requirements=_requirements_of(target, experiment),
        hub_models=models.hub,
        local_models=models.local,
    )


@contextmanager
def _user_errors(what: str) -> Iterator[None]:
    """Report what the user's own validators and hooks raise, with their frames."""
    try:
        yield
    except (Error, KeyboardInterrupt):
        raise
    except BaseException as e:
        text = describe_debugger(e) if isinstance(e, bdb.BdbQuit) else describe_error(e)
        is_without_terminal = sys.stdin is None or not sys.stdin.isatty()
        hint = f"\n{NEEDS_TERMINAL_HINT}" if needs_terminal(e) and is_without_terminal else ""
        raise ConfigError(f"{what} failed: {text}{hint}") from e


def _check_setup_fields(target: Callable[..., Any]) -> None:
    if not inspect.isclass(target) or not issubclass(target, Experiment):
        return
    if isinstance(target.setup_fields, str):
        raise ConfigError(
            f"{target.__qualname__}.setup_fields is a string; write ({target.setup_fields!r},)"
        )
    config = getattr(target, "Config", None)
    declared = set(target.setup_fields or ())
    known = set(getattr(config, "model_fields", ())) | {"seed"} if config else declared
    unknown = sorted(declared - known)
    if unknown:
        raise ConfigError(
            f"{target.__qualname__}.setup_fields names {unknown}, which its Config does not have; "
            f"known: {', '.join(sorted(known))}"
        )


def _setup_key(
    target: Callable[..., Any],
    experiment: str,
    import_paths: tuple[str, ...],
    config: dict[str, Any],
    seed: int,
) -> str | None:
    if not inspect.isclass(target) or not issubclass(target, Experiment):
        return None
    if target.setup_fields is None:
        return None
    values = {**config, "seed": config.get("seed", seed)}
    if target.__init__ is Experiment.__init__:
        values = {name: values.get(name) for name in target.setup_fields}
    # else it may have kept any field of the config
    return json.dumps([experiment, import_paths, values], sort_keys=True)


def _requirements_of(target: Callable[..., Any], experiment: str) -> tuple[str, ...]:
    found = getattr(target, "requirements", ())
    is_list = isinstance(found, Sequence) and not isinstance(found, str)
    if not is_list or not all(isinstance(item, str) for item in found):
        raise PreflightError(
            f"{experiment}: requirements is {found!r}; write a list such as ['timm>=1.0']"
        )
    return tuple(found)
