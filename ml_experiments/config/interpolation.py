"""`${...}` in a config: other fields, and OmegaConf's resolvers such as `${oc.env:VAR}`."""

from __future__ import annotations

import re
from typing import Any

from ml_experiments.config.scalars import MAX_DEPTH
from ml_experiments.errors import ConfigError

_MISSING_VARIABLE = re.compile(r"Environment variable '(.*?)' not found")


def resolve_interpolations(data: dict[str, Any]) -> dict[str, Any]:
    r"""Return a config in which every `${...}` is replaced; `\${` stands for a literal `${`.

    Raises:
        ConfigError: Naming every field that refers to what isn't there.
    """
    if not _has_interpolation(data):
        return data
    from omegaconf import OmegaConf  # slow to import, and rarely needed
    from omegaconf.errors import OmegaConfBaseException

    problems: list[str] = []

    def resolve(node: Any, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            problems.append(f"{path[:80]}: it contains itself")
            return None
        if not OmegaConf.is_config(node):
            return node
        is_dict = OmegaConf.is_dict(node)
        resolved = []
        for key in list(node) if is_dict else range(len(node)):
            place = f"{path}.{key}" if path else str(key)
            try:
                # a quoted "???" is a string here, not a missing value as in OmegaConf
                item = "???" if OmegaConf.is_missing(node, key) else node[key]
            except OmegaConfBaseException as e:
                problems.append(f"{place}: {_explain(e)}")
                continue
            resolved.append((key, resolve(item, place, depth + 1)))
        return dict(resolved) if is_dict else [item for _, item in resolved]

    try:
        plain: dict[str, Any] = resolve(OmegaConf.create(data), "", 0)
    except OmegaConfBaseException as e:
        problems.append(f"{getattr(e, 'full_key', None) or 'config'}: {_explain(e)}")
    if problems:
        raise ConfigError("the config refers to what is not there:", tuple(problems))
    return plain


def _has_interpolation(data: Any) -> bool:
    if isinstance(data, dict):
        return any(_has_interpolation(item) for item in data.values())
    if isinstance(data, list | tuple):
        return any(_has_interpolation(item) for item in data)
    return isinstance(data, str) and "${" in data


def _explain(error: Exception) -> str:
    message = str(error).partition("\n")[0]
    if type(error).__name__ == "GrammarParseError":
        message = "a ${...} in it is not complete"
    variable = _MISSING_VARIABLE.search(message)
    if variable:
        name = variable[1]
        return (
            f"the environment variable {name} is not set; set it, or give a default: "
            f"${{oc.env:{name},default}}"
        )
    return f"{message}; for a literal ${{ write \\${{"
