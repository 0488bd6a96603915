"""The models on the Hugging Face Hub that a run needs, to be downloaded before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FIELD = re.compile(r"(.*_)?model_name")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class NamedModels(NamedTuple):
    """The models that a config names.

    Attributes:
        hub: As `org/name` or `org/name@revision`.
        local: Absolute paths of this machine.
    """

    hub: tuple[str, ...]
    local: tuple[str, ...]


def named_models(
    experiment: Callable[..., Any], config: Any, values: Mapping[str, Any]
) -> NamedModels:
    """Return the models that a config names.

    An experiment can define them by a class or static method `hub_models(config)`, where absolute
    paths are of this machine. Otherwise they are the values of `model_name` and `..._model_name`
    that have the form `org/name` and are no existing folder; a field `revision` belongs to
    `model_name`.

    Args:
        experiment: The class or function.
        config: Its config.
        values: The config as JSON.
    """
    hook = getattr(experiment, "hub_models", None)
    names: Iterable[str] = hook(config) if hook is not None else _by_convention(values)
    named = tuple(dict.fromkeys(names))
    local = tuple(name for name in named if Path(name).is_absolute())
    return NamedModels(tuple(name for name in named if name not in local), local)


def _by_convention(values: Mapping[str, Any]) -> Iterable[str]:
    for field, value in values.items():
        if not _FIELD.fullmatch(field) or not isinstance(value, str):
            continue
        if not _HUB_NAME.fullmatch(value) or Path(value).exists():
            continue
        revision = values.get("revision") if field == "model_name" else None
        yield f"{value}@{revision}" if revision and "@" not in value else value
