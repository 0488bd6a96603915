"""Compares what two runs returned and logged, within a tolerance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_experiments.errors import Error, suggest
from ml_experiments.runs.result import RunResult
from ml_experiments.serialization.loading import FILE_TYPES, locate
from ml_experiments.serialization.plain_values import MAX_SHOWN_BITS
from ml_experiments.serialization.typed_json import TYPE_KEY

MISSING = "(none)"
_MAX_LENGTH = 60
_MAX_NAMED = 10
_ARRAYS = ("ndarray", "tensor")


@dataclass(frozen=True)
class ValueDifference:
    """A value that is not the same in two runs.

    Attributes:
        name: The metric, or the path in the results, such as `results.loss`.
        step: The step of the metric; None for results, and for metrics without a step.
        first: The value in one run, as JSON; MISSING where it has none.
        second: The value in the other.
    """

    name: str
    step: int | float | None
    first: Any
    second: Any

    def __str__(self) -> str:
        place = "" if self.step is None else f" at step {self.step}"
        return f"{self.name}{place}: {_exact(self.first)} and {_exact(self.second)}"


def compare_results(
    first: RunResult, second: RunResult, tolerance: float, ignore: Collection[str] = ()
) -> tuple[int, list[ValueDifference]]:
    """Return how many values of the results of two runs were compared, and those that differ.

    Files are compared by their content.

    Args:
        first: One result.
        second: The other.
        tolerance: How much numbers may differ, relative to the larger one, and absolutely.
        ignore: Names of results that are not compared.
    """
    found = _pairs("results", first.results_json, second.results_json)
    pairs = [(name, None, *values) for name, *values in found]
    return _compare((first, second), pairs, tolerance, ignore)


def compare_metrics(
    first: RunResult, second: RunResult, tolerance: float, ignore: Collection[str] = ()
) -> tuple[int, list[ValueDifference]]:
    """Return the same of what they have logged, the earliest step first.

    A run that was resumed has logged some steps twice; the last value of each counts.
    """
    ours, theirs = _by_step(first), _by_step(second)
    pairs = [
        (name, step, *values)
        for step in sorted(ours.keys() | theirs.keys(), key=lambda step: (step is None, step))
        for name, *values in _metric_pairs(ours.get(step, {}), theirs.get(step, {}))
    ]
    return _compare((first, second), pairs, tolerance, ignore)


def check_names(result: RunResult, names: Iterable[str]) -> None:
    """Make sure that a run has what is not to be compared.

    Raises:
        Error: If it has no metric and no result of such a name.
    """
    metrics = [
        pair for logged in _by_step(result).values() for pair in _metric_pairs(logged, logged)
    ]
    results = _pairs("results", result.results_json, result.results_json)
    there = dict.fromkeys(name for name, *_ in (*metrics, *results))
    for name in names:
        if not any(_is_ignored(each, (name,)) for each in there):
            known = [each.removeprefix("results.") for each in there]
            raise Error(
                f"ignore: the run has no metric and no result {name!r}{suggest(name, known)}; "
                f"it has {', '.join(known[:_MAX_NAMED])}{', …' if len(known) > _MAX_NAMED else ''}"
            )


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
    if isinstance(value, dict) and TYPE_KEY in value:
        value = value.get("value", value.get("path", value))
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_BITS:
        return f"an integer of {value.bit_length():,} bits"
    string = str(value)
    return string if len(string) <= _MAX_LENGTH else f"{string[: _MAX_LENGTH - 1]}…"


def _exact(value: Any) -> str:
    """Return a value with all its digits."""
    if isinstance(value, dict) and "path" in value:
        return str(value["path"])
    return value if isinstance(value, str) else f"{value!r:.{_MAX_LENGTH}}"


def _compare(
    runs: tuple[RunResult, RunResult],
    pairs: Iterable[tuple[str, int | float | None, Any, Any]],
    tolerance: float,
    ignore: Collection[str],
) -> tuple[int, list[ValueDifference]]:
    compared = [pair for pair in pairs if not _is_ignored(pair[0], ignore)]
    different = [pair for pair in compared if not _are_same(runs, *pair[2:], tolerance)]
    return len(compared), [ValueDifference(*pair) for pair in different]


def _is_ignored(name: str, ignore: Collection[str]) -> bool:
    return any(
        name == start or name.startswith((f"{start}.", f"{start}["))
        for word in ignore
        for start in (word, f"results.{word}")
    )


def _pairs(name: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values inside dicts and lists by their paths; one that stands in a file whole."""
    if isinstance(first, dict) and isinstance(second, dict) and not _are_files(first, second):
        for key in dict.fromkeys((*first, *second)):
            one, other = first.get(key, MISSING), second.get(key, MISSING)
            yield from _pairs(f"{name}.{key}", one, other)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _pairs(f"{name}[{index}]", one, other)
    else:
        yield name, first, second


def _metric_pairs(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(first.keys() | second.keys()):
        yield from _pairs(name, first.get(name, MISSING), second.get(name, MISSING))


def _are_files(first: dict[str, Any], second: dict[str, Any]) -> bool:
    kind = first.get(TYPE_KEY)  # few bytes stand in the record, without a file
    return (
        kind in FILE_TYPES and kind == second.get(TYPE_KEY) and "path" in first and "path" in second
    )


def _are_same(runs: tuple[RunResult, RunResult], first: Any, second: Any, tolerance: float) -> bool:
    if isinstance(first, dict) and isinstance(second, dict) and _are_files(first, second):
        return _is_same_file(runs, first, second, tolerance)
    return is_same(first, second, tolerance)


def _is_same_file(
    runs: tuple[RunResult, RunResult], first: Any, second: Any, tolerance: float
) -> bool:
    try:
        files = [locate(d, run.run_dir) for run, d in zip(runs, (first, second), strict=True)]
        if all(file.is_file() for file in files):
            if files[0].read_bytes() == files[1].read_bytes():
                return True
            if first[TYPE_KEY] in _ARRAYS:
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


def _by_step(result: RunResult) -> dict[int | float | None, dict[str, Any]]:
    """Return the last value of each metric at each step."""
    found: dict[int | float | None, dict[str, Any]] = {}
    for entry in result.metrics:
        metrics = entry.get("metrics")
        step = entry.get("step")
        if isinstance(metrics, dict) and isinstance(step, int | float | None):
            found.setdefault(step, {}).update(metrics)
    return found
