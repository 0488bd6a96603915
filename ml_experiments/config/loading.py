"""A file and overrides become a dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_experiments.config.files import read_config_file
from ml_experiments.config.interpolation import resolve_interpolations
from ml_experiments.config.overrides import assign, grouped, parse_override
from ml_experiments.config.scalars import LoadedConfig, resolve_scalars
from ml_experiments.errors import ConfigError


def load_config(
    file: Path | None, overrides: Sequence[str], base: Mapping[str, Any] | None = None
) -> LoadedConfig:
    r"""Return the config that a base, a YAML or JSON file and `key=value` overrides make.

    Later ones win: the file's fields go over those of the base, also inside its dicts; an
    override replaces the value that it names. Then `${...}` is resolved (`${oc.env:VAR}`, other
    fields as `${optimizer.lr}`); `\${` stands for a literal `${`.

    Raises:
        ConfigError: If the file or an override can't be read, refers to what isn't there, or
            leaves a field `???`.
    """
    config: dict[str, Any] = copy.deepcopy(dict(base or {}))
    if file is not None:
        config = _merge(config, read_config_file(file))
    problems = []
    for words in grouped(overrides):
        try:
            assign(config, *parse_override(*words))
        except ConfigError as e:
            problems.append(str(e))
    if problems:
        raise ConfigError("these overrides can't be applied:", tuple(problems))
    plain, unquoted = resolve_scalars(config)
    loaded = LoadedConfig(resolve_interpolations(plain))
    loaded.unquoted = unquoted
    return loaded


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged
