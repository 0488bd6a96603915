"""One point of a sweep that has ended, and its score."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ml_experiments.config.loading import load_config
from ml_experiments.errors import Error, suggest
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus

PRUNED = "Pruned"  # the type of the error of a run that was ended early
_MAX_STEP = 2**63 - 1  # numpy's, with which pruners count


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep that has ended.

    Example:
        ```python
        from ml_experiments import sweep

        def square(n=2):
            return {"area": n * n}

        if __name__ == "__main__":
            points = list(sweep(square, {"n": [1, 2]}, maximize="results.area"))
            print(points[-1].values, points[-1].score)  # {'n': 2} 4.0
        ```

    Attributes:
        number: Its place in the sweep, from 0.
        overrides: What was set in the config, as on the command line.
        result: What came of its run.
        score: The value of the metric that the sweep compares; None without one.
        problem: Why there is no score, where there should be one.
    """

    number: int
    overrides: tuple[str, ...]
    result: RunResult
    score: float | None = None
    problem: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The fields that it sets, with their values."""
        names = (override.partition("=")[0] for override in self.overrides)
        return {
            name: _value_at(load_config(None, [override]), name)
            for name, override in zip(names, self.overrides, strict=True)
        }

    @property
    def is_pruned(self) -> bool:
        """Whether a pruner has ended its run early."""
        error = self.result.error
        return error is not None and error.type == PRUNED

    @property
    def setup_saved_s(self) -> float | None:
        """Seconds of set-up that it was spared; 0 if it did it, None where none can be shared."""
        return self.result.timings.get("setup_saved_s")

    @property
    def cost_usd(self) -> float:
        """What its run cost by estimate, all attempts together; nothing for an earlier run's."""
        if self.result.is_reused:
            return 0.0
        costs = [a.cost_usd for a in self.result.attempts if a.cost_usd is not None]
        return sum(costs) if costs else self.result.cost.get("estimate_usd", 0.0)


def _value_at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def ended_point(
    number: int, overrides: tuple[str, ...], result: RunResult, metric: str | None
) -> SweepPoint:
    """Return a point with its score."""
    point = SweepPoint(number, overrides, result)
    if metric is None or result.status is not RunStatus.SUCCESS:
        return point
    try:
        return dataclasses.replace(point, score=read_score(result, metric))
    except Error as e:
        return dataclasses.replace(point, problem=str(e))


def has_metric(result: RunResult, metric: str) -> bool:
    """Return whether a metric such as `results.accuracy` is a number, be it NaN."""
    try:
        _read_number(result, metric)
    except Error:
        return False
    return True


def read_score(result: RunResult, metric: str) -> float:
    """Return the number that a metric such as `results.accuracy` means.

    Raises:
        Error: If there is none, or it is no finite number.
    """
    number = _read_number(result, metric)
    if not math.isfinite(number):
        raise Error(f"{metric} is {number}, which can't be compared")
    return number


def _read_number(result: RunResult, metric: str) -> float:
    value: Any = result.results
    rest = metric.removeprefix("results").removeprefix(".")
    while rest:
        keys = {str(key): key for key in value} if isinstance(value, dict) else {}
        part = rest if rest in keys else rest.partition(".")[0]  # a key may have a dot
        if part not in keys:
            there = f"; there are {', '.join(sorted(keys))}" if keys else ""
            raise Error(f"the results have no {metric}{suggest(part, keys)}{there}")
        value, rest = value[keys[part]], rest[len(part) + 1 :]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Error(f"{metric} is {value!r:.60}, not a number")
    return _as_float(value)


def comparable(step: object, value: object) -> tuple[int, float] | None:
    """Return what a pruner compares; None where a metric is no number, or its step no count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _MAX_STEP:
        return None
    return step, _as_float(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int
        return math.inf if value > 0 else -math.inf


def logged_values(result: RunResult, metric: str) -> dict[int, float]:
    """Return the values of a logged metric by step."""
    steps: dict[int, float] = {}
    for entry in result.metrics:
        found = comparable(entry.get("step"), entry.get("metrics", {}).get(metric))
        if found is not None:
            steps.setdefault(*found)
    return steps


def end_early(result: RunResult, why: str) -> RunResult:
    """Return the result of a run that was ended early, as it was written into its folder."""
    error = RunError(ErrorKind.EXPERIMENT, PRUNED, why)
    result = dataclasses.replace(result, status=RunStatus.CANCELLED, error=error)
    if result.run_dir is None:
        return result
    # secrets were taken out when it was first written
    return RunFolder(result.run_dir).write_result(result, Redactor(()))


def rank(points: list[SweepPoint], direction: str | None) -> list[SweepPoint]:
    """Return points with the best first; those without a score last, in their order."""
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(
        points,
        key=lambda p: (p.score is None, sign * (p.score or 0.0), p.number),
    )
