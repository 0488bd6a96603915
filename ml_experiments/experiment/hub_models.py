"""The models on the Hugging Face Hub that a run needs, to be downloaded before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_FIELD = re.compile(r"(.*_)?model_name")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def hub_models(
    experiment: Callable[..., Any], config: Any, values: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the models that a config names, as `org/name` or `org/name@revision`.

    An experiment can define them by a class or static method `hub_models(config)`. Otherwise
    they are the values of `model_name` and `..._model_name` that have the form `org/name` and
    are no existing folder; a field `revision` belongs to `model_name`.

    Args:
        experiment: The class or function.
        config: Its config.
        values: The config as JSON.
    """
    hook = getattr(experiment, "hub_models", None)
    named: Iterable[str] = hook(config) if hook is not None else _by_convention(values)
    return tuple(dict.fromkeys(named))


def _by_convention(values: Mapping[str, Any]) -> Iterable[str]:
    for field, value in values.items():
        if not _FIELD.fullmatch(field) or not isinstance(value, str):
            continue
        if not _HUB_NAME.fullmatch(value) or Path(value).exists():
            continue
        revision = values.get("revision") if field == "model_name" else None
        yield f"{value}@{revision}" if revision and "@" not in value else value
