"""Whether two runs came to the same: their metrics step by step, and their results."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.runs.folder import RunFolder
from ml_experiments.serialization.typed_json import TYPE_KEY

_ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """What differs first.

    Attributes:
        name: The metric, or the path in the results, such as `results.loss`.
        step: The step of the metric; None for results, and for metrics without a step.
        first: The value in one run.
        second: The value in the other.
    """

    name: str
    step: int | None
    first: Any
    second: Any

    def __str__(self) -> str:
        place = "" if self.step is None else f" at step {self.step}"
        return f"{self.name}{place}: {_shown(self.first)} and {_shown(self.second)}"


def metric_differences(
    first: RunFolder,
    second: RunFolder,
    *,
    tolerance: float = 0.0,
    ignore: Collection[str] = (),
) -> tuple[int, list[Difference]]:
    """Return how many values were compared, and those that differ, the earliest step first.

    A run that was resumed has logged some steps twice; the last value of each counts.
    """
    ours, theirs = _by_step(first), _by_step(second)
    # steps in order, then what was logged without a step
    keys = sorted(
        ours.keys() | theirs.keys(), key=lambda key: (key[0] is None, key[0] or 0, key[1])
    )
    keys = [key for key in keys if not _is_ignored(key[1], ignore)]
    found = []
    for step, name in keys:
        pair = ours.get((step, name), _ABSENT), theirs.get((step, name), _ABSENT)
        if not _are_equal(*pair, first.path, second.path, tolerance):
            found.append(Difference(name, step, *pair))
    return len(keys), found


def result_differences(
    first: RunFolder,
    second: RunFolder,
    *,
    tolerance: float = 0.0,
    ignore: Collection[str] = (),
) -> tuple[int, list[Difference]]:
    """Return how many values of the results were compared, and those that differ."""
    ours = dict(_leaves(first.read_result().results_json, "results"))
    theirs = dict(_leaves(second.read_result().results_json, "results"))
    names = [n for n in dict.fromkeys([*ours, *theirs]) if not _is_ignored(n, ignore)]
    found = []
    for name in names:
        pair = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if not _are_equal(*pair, first.path, second.path, tolerance):
            found.append(Difference(name, None, *pair))
    return len(names), found


def _by_step(folder: RunFolder) -> dict[tuple[int | None, str], Any]:
    values: dict[tuple[int | None, str], Any] = {}
    for entry in folder.read_metrics():
        for name, value in _leaves(entry.get("metrics") or {}, ""):
            values[entry.get("step"), name] = value
    return values


def _leaves(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    """Yield the values inside dicts and lists by their paths; one that stands in a file whole."""
    if isinstance(value, Mapping) and TYPE_KEY not in value and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, value


def _is_ignored(name: str, ignore: Collection[str]) -> bool:
    return any(
        name in (word, f"results.{word}") or name.startswith((f"results.{word}.", f"{word}."))
        for word in ignore
    )


def _are_equal(first: Any, second: Any, ours: Path, theirs: Path, tolerance: float) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers) and tolerance:
        return math.isclose(first, second, rel_tol=tolerance)
    if isinstance(first, Mapping) and isinstance(second, Mapping) and "path" in first:
        same = {k: v for k, v in first.items() if k != "path"} == {
            k: v for k, v in second.items() if k != "path"
        }
        return same and _content(ours, first) == _content(theirs, second)
    return type(first) is type(second) and bool(first == second)


def _content(folder: Path, descriptor: Mapping[str, Any]) -> bytes | None:
    try:
        return (folder / str(descriptor["path"])).read_bytes()
    except OSError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "path" in value:
        return str(value["path"])
    return value if isinstance(value, str) else f"{value!r:.60}"
