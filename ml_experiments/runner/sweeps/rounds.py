"""Successive halving by money: each round gets an equal part of what is left, for fewer points.

Every point begins with the same slice of the cap, which becomes its timeout. When all have used
theirs up, the better ones go on from their checkpoints with a larger slice each, and the others
are ended; the last round is for the best point alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import override

from ml_experiments.backends.forecast import Forecast
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.points import SweepPoint, end_early, logged_values
from ml_experiments.runner.sweeps.sources import NextPoint, PointSource
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunStatus


def rounds_for(points: int, left_usd: float, least_usd: float) -> int:
    """Return in how many rounds points are halved; fewer where a slice would be too small."""
    until_one_is_left = math.ceil(math.log2(points)) + 1
    affordable = left_usd / (points * least_usd) if least_usd else until_one_is_left
    return max(1, math.floor(min(until_one_is_left, affordable)))


def in_rounds(
    points: PointSource,
    spec: SweepSpec,
    count: int,
    forecast: Forecast | None,
    earlier: Iterable[SweepPoint] = (),
) -> PointSource:
    """Return the points of a sweep in rounds, if it is halved by money, else as they are.

    Args:
        points: The points.
        spec: The sweep.
        count: How many points there are.
        forecast: What they are going to cost.
        earlier: Points that have ended before, to compare with.
    """
    least_usd = None if forecast is None else forecast.least_usd
    metric = spec.pruner_metric
    if not spec.is_halved_by_money or not count or metric is None:
        return points
    cap, scope = spec.budget.max_usd or 0.0, spec.budget.scope
    return MoneyRounds(
        points,
        count,
        metric=metric,
        direction=spec.direction,
        left_usd=lambda: max(0.0, cap - open_ledger().spent_usd(scope)),
        least_usd=least_usd or 0.0,
        earlier=earlier,
    )


class MoneyRounds(PointSource):
    """Gives out the points of another source, and the better ones again, with more money.

    Args:
        points: The points of the first round.
        count: How many there are.
        metric: The logged metric that is compared.
        direction: `maximize` or `minimize`.
        left_usd: Returns what is left of the cap.
        least_usd: With less than that, no point can start.
        earlier: Points that have ended before, to compare with.
    """

    def __init__(
        self,
        points: PointSource,
        count: int,
        *,
        metric: str,
        direction: str | None,
        left_usd: Callable[[], float],
        least_usd: float,
        earlier: Iterable[SweepPoint] = (),
    ) -> None:
        self._points, self._count = points, count
        self._metric, self._sign = metric, -1.0 if direction == "maximize" else 1.0
        self._left_usd, self._least_usd = left_usd, least_usd
        self._rounds = rounds_for(count, left_usd(), least_usd)
        self._round = 0
        self._each_usd = left_usd() / self._rounds / count
        self._active: dict[int, NextPoint] = {}
        self._waiting: deque[NextPoint] = deque()
        self._cut: dict[int, tuple[NextPoint, SweepPoint]] = {}  # by the timeout of their slice
        # those that came to their end
        self._whole = [p for p in earlier if p.result.status is RunStatus.SUCCESS]
        self._decided: list[SweepPoint] = []

    @override
    def take(self) -> NextPoint | None:
        point = self._next()
        if point is None:
            return None
        self._active[point.number] = point
        return dataclasses.replace(point, max_usd=self._each_usd)

    @override
    def may_give_more(self) -> bool:
        return self._round < self._rounds - 1 and bool(self._active or self._cut)

    @override
    def ended(self, point: SweepPoint) -> None:
        given = self._active.pop(point.number)
        if self._round == 0:
            self._points.ended(point)
            self.repeated = self._points.repeated
        if is_cut_by_cap(point):
            self._cut[point.number] = given, point
            return
        if point.result.status is RunStatus.SUCCESS:
            self._whole.append(point)
        self._decided.append(point)

    @override
    def decided(self, ended: SweepPoint | None) -> Sequence[SweepPoint]:
        found, self._decided = self._decided, []
        return found

    @override
    def held(self) -> Sequence[SweepPoint]:
        return [*self._decided, *(point for _, point in self._cut.values())]

    def _next(self) -> NextPoint | None:
        if self._round == 0:
            point = self._points.take()
            self.repeated = self._points.repeated
            if point is not None or self._active or self._points.may_give_more():
                return point
        if not self._waiting and not self._active:
            self._begin_round()
        return self._waiting.popleft() if self._waiting else None

    def _begin_round(self) -> None:
        """Choose who goes on; without money for another round, all that were cut are decided."""
        self._round += 1
        if self._round >= self._rounds:
            self._decided += [point for _, point in self._cut.values()]
            self._cut.clear()
            return
        keep = round(self._count ** (1 - self._round / (self._rounds - 1)))
        ranked = self._ranked([*self._whole, *(point for _, point in self._cut.values())])
        best = [point.number for point in ranked[:keep] if point.number in self._cut]
        share = self._left_usd() / (self._rounds - self._round)
        while len(best) > 1 and share / len(best) < self._least_usd:
            best.pop()
        self._waiting.extend(self._cut[number][0] for number in best)
        self._each_usd = share / max(1, len(best))
        for number, (_, point) in self._cut.items():
            if number not in best:
                result = end_early(point.result, self._reason(point))
                self._decided.append(dataclasses.replace(point, result=result))
        self._cut.clear()

    def _ranked(self, points: Iterable[SweepPoint]) -> list[SweepPoint]:
        def key(point: SweepPoint) -> tuple[Any, ...]:
            value = self._last_value(point)
            return (value is None, self._sign * (value or 0.0), point.number)

        return sorted(points, key=key)

    def _last_value(self, point: SweepPoint) -> float | None:
        """Return what a point has logged last; a NaN is nothing to compare."""
        logged = logged_values(point.result, self._metric)
        value = logged[max(logged)] if logged else math.nan
        return None if math.isnan(value) else value

    def _reason(self, point: SweepPoint) -> str:
        metric, value = self._metric, self._last_value(point)
        seen = f"it has not logged {metric}" if value is None else f"{metric} is {value:.6g}"
        return f"{seen}, poor beside the other points when its part of max_cost was used up"


def is_cut_by_cap(point: SweepPoint) -> bool:
    """Return whether a run was ended by a timeout that its cap had made shorter."""
    error, place = point.result.error, point.result.run_dir
    if error is None or error.kind is not ErrorKind.TIMEOUT or place is None:
        return False
    return RunFolder(place).read_spec().asked_timeout_s is not None
