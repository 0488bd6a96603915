"""Compares what two runs returned and logged, within a tolerance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml_experiments.errors import Error
from ml_experiments.runs.result import RunResult
from ml_experiments.serialization.loading import FILE_TYPES, locate

MISSING = "(none)"
_MAX_LENGTH = 60
_ARRAYS = ("ndarray", "tensor")


@dataclass(frozen=True)
class ValueDifference:
    """A value that is not the same in two runs, as it is shown."""

    path: str
    first: str
    second: str


def compare_results(first: RunResult, second: RunResult, tolerance: float) -> list[ValueDifference]:
    """Return where the results of two runs differ; files are compared by their content.

    Args:
        first: One result.
        second: The other.
        tolerance: How much numbers may differ, relative to the larger one, and absolutely.
    """
    return list(
        _compare("results", (first, second), first.results_json, second.results_json, tolerance)
    )


def compare_metrics(first: RunResult, second: RunResult, tolerance: float) -> list[ValueDifference]:
    """Return the first step at which each metric of two runs differs."""
    found: dict[str, ValueDifference] = {}
    logs = [_by_step(result) for result in (first, second)]
    for name in dict.fromkeys((*logs[0], *logs[1])):
        one, other = (log.get(name, {}) for log in logs)
        for step in sorted(one.keys() | other.keys(), key=lambda step: (step is None, step)):
            a, b = one.get(step, MISSING), other.get(step, MISSING)
            if not is_same(a, b, tolerance):
                path = f"metrics.{name}" + ("" if step is None else f" at step {step}")
                found[name] = ValueDifference(path, shown(a), shown(b))
                break
    return list(found.values())


def is_same(first: Any, second: Any, tolerance: float) -> bool:
    """Return whether two JSON scalars are the same, numbers within a tolerance."""
    are_numbers = all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in (first, second)
    )
    if are_numbers:
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
    return bool(first == second) and type(first) is type(second)


def shown(value: Any) -> str:
    """Return a value as reports show it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.9g}"
    string = str(value)
    return string if len(string) <= _MAX_LENGTH else f"{string[: _MAX_LENGTH - 1]}…"


def _compare(
    path: str, runs: tuple[RunResult, RunResult], first: Any, second: Any, tolerance: float
) -> Iterator[ValueDifference]:
    if isinstance(first, dict) and isinstance(second, dict):
        if first.get("$type") in FILE_TYPES and first.get("$type") == second.get("$type"):
            if not _is_same_file(runs, first, second, tolerance):
                yield ValueDifference(path, shown(first.get("path")), shown(second.get("path")))
            return
        for key in dict.fromkeys((*first, *second)):
            one, other = first.get(key, MISSING), second.get(key, MISSING)
            yield from _compare(f"{path}.{key}", runs, one, other, tolerance)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _compare(f"{path}[{index}]", runs, one, other, tolerance)
    elif not is_same(first, second, tolerance):
        yield ValueDifference(path, shown(first), shown(second))


def _is_same_file(
    runs: tuple[RunResult, RunResult], first: Any, second: Any, tolerance: float
) -> bool:
    try:
        files = [locate(d, run.run_dir) for run, d in zip(runs, (first, second), strict=True)]
        if all(file.is_file() for file in files):
            if files[0].read_bytes() == files[1].read_bytes():
                return True
            if first["$type"] in _ARRAYS:
                return _is_same_array(runs[0].load(first), runs[1].load(second), tolerance)
        return False
    except (Error, OSError):
        return False


def _is_same_array(first: Any, second: Any, tolerance: float) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.dtype.kind not in "fc":
        return bool((first == second).all())
    limit = tolerance * abs(first) + tolerance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the difference of infinities
        is_close = (abs(first - second) <= limit) | (first == second)
    return bool((is_close | ((first != first) & (second != second))).all())  # NaN is not itself


def _by_step(result: RunResult) -> dict[str, dict[Any, Any]]:
    """Return the last value of each metric at each step."""
    found: dict[str, dict[Any, Any]] = {}
    for entry in result.metrics:
        metrics = entry.get("metrics")
        step = entry.get("step")
        if isinstance(metrics, dict) and isinstance(step, int | float | None):
            for name, value in metrics.items():
                found.setdefault(name, {})[step] = value
    return found
