"""Config files: YAML or JSON to a dict, with the file and line of what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ml_experiments.config.scalars import MAX_DEPTH, read_scalar, tree_problems
from ml_experiments.errors import ConfigError


def read_config_file(file: Path) -> dict[str, Any]:
    """Return what a config file holds.

    Raises:
        ConfigError: If it can't be read, isn't YAML or JSON by name and content, or doesn't
            hold fields.
    """
    parsers: dict[str, Callable[[str], Any]] = {
        ".yaml": parse_yaml,
        ".yml": parse_yaml,
        ".json": _parse_json,
    }
    parse = parsers.get(file.suffix.lower())
    if parse is None:
        raise ConfigError(f"{file}: a config file is named *.yaml, *.yml or *.json")
    try:
        data = parse(file.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        raise ConfigError(f"{file} can't be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file} is not UTF-8 (byte {e.start})") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{file}{describe_parse_error(e)}") from e
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(
            f"{file} holds a {type(data).__name__}, not fields; write them as `name: value`"
        )
    problems = tree_problems(data)
    if problems:
        raise ConfigError(f"{file} is not a valid config:", problems)
    return data


def parse_yaml(content: str) -> Any:
    """Return what YAML means, with `Unquoted` scalars; duplicate keys are errors.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: If it isn't YAML, or too deep.
    """
    return yaml.load(content, Loader=_Loader)


def describe_parse_error(error: Exception) -> str:
    """Return ` line N: what is wrong`, to stand after the name of a file or an override."""
    if isinstance(error, RecursionError):
        return f": nested deeper than {MAX_DEPTH} levels"
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno}, column {error.colno}: {error.msg}"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": {error}"
    what = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
    if what and "'\\t'" in what:
        what = "a tab; YAML indents with spaces only"
    return f", line {mark.line + 1}, column {mark.column + 1}: {what}"


def _parse_json(content: str) -> Any:
    return json.loads(content, object_pairs_hook=_unique_pairs)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return data


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys and with `Unquoted` scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            # PyYAML's own errors in reading `!!bool x`, `!!int ''` or `!!timestamp x`
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.60} is not of the type !!{kind}", node.start_mark
            ) from e


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    seen: dict[Any, yaml.Node] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is not a string", key_node.start_mark
            )
        key = key_node.value
        if key in seen and key != "<<":
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"the key {key!r} is there twice, first in line {seen[key].start_mark.line + 1}",
                key_node.start_mark,
            )
        seen[key] = key_node
        if key_node.tag != "tag:yaml.org,2002:merge":
            key_node.style = "'"  # the names of fields are strings, also `1:` and `on:`
    # two steps, as in SafeConstructor, so that an anchor may refer to what is around it
    data: dict[Any, Any] = {}
    yield data
    data.update(loader.construct_mapping(node, deep=False))


def _construct_scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    written = loader.construct_scalar(node)
    return read_scalar(written) if node.style is None else written


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:str", _construct_scalar)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
