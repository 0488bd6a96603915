"""Where the points of a sweep come from: a grid, or a sampler of Optuna's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.points import SweepPoint
from ml_experiments.runner.sweeps.schedule import Schedule
from ml_experiments.runner.sweeps.search_space.space import point_key
from ml_experiments.runner.sweeps.study import Study, Trial
from ml_experiments.runs.result import RunStatus


@dataclass(frozen=True)
class NextPoint:
    """A point that may start now.

    Attributes:
        number: Its place in the sweep.
        overrides: What it sets in the config.
        trial: Its number in Optuna's study, where there is one.
        max_usd: The most that may be reserved for it; None for its share of the sweep's cap.
    """

    number: int
    overrides: tuple[str, ...]
    trial: int | None = None
    max_usd: float | None = None

    @property
    def key(self) -> str:
        """What it is recognized by."""
        return point_key(self.overrides)

    @property
    def run_key(self) -> str:
        """What its run is recognized by: a sampler may suggest a point twice."""
        return self.key if self.trial is None else str(self.trial)


class PointSource(ABC):
    """Gives out points, as fast as they can start.

    Attributes:
        repeated: How many points were suggested that have run before, and so did not run again.
    """

    repeated = 0

    @abstractmethod
    def take(self) -> NextPoint | None:
        """Return the next point; None if none can start until one ends."""

    def upcoming(self) -> NextPoint | None:
        """Return a point that `take` is likely to give when one of those that run has ended."""
        return None

    def may_give_more(self) -> bool:
        """Return whether there may be points for workers that `take` has none for now."""
        return False

    def report(self, number: int, step: int, value: float) -> bool:  # noqa: ARG002
        """Take what a running point has logged; return whether to end it early."""
        return False

    @abstractmethod
    def ended(self, point: SweepPoint) -> None:
        """Take note that a point has ended."""

    def decided(self, ended: SweepPoint | None) -> Sequence[SweepPoint]:
        """Return the points that will not run again, as far as they were not returned before.

        Args:
            ended: The point that has just ended; None where none has.
        """
        return () if ended is None else (ended,)

    def held(self) -> Sequence[SweepPoint]:
        """Return the points that have ended and could have run again."""
        return ()


class GridPoints(PointSource):
    """Points of a grid, ordered so that they share set-ups.

    Args:
        spec: The sweep.
        todo: The numbers of the points to run, each with its set-up key.
        study: Optuna's study, where a pruner compares the points.
    """

    def __init__(
        self,
        spec: SweepSpec,
        todo: Iterable[tuple[int, Hashable | None]],
        study: Study | None = None,
    ) -> None:
        self._space, self._study = spec.space, study
        self._trials: dict[int, int] = {}
        points = list(todo)
        # those that share a set-up wait here for the container that has it
        has_setups = any(key is not None for _, key in points)
        self._schedule = Schedule(points, spec.parallel if has_setups else spec.handed_over)

    def take(self) -> NextPoint | None:
        """Return the next point; None if none can start until one ends."""
        number = self._schedule.take()
        if number is None:
            return None
        point = NextPoint(number, self._space.point(number))
        if self._study is not None:
            self._trials[number] = self._study.begin(point.overrides)
        return point

    def upcoming(self) -> NextPoint | None:
        """Return a point that `take` is likely to give when one of those that run has ended."""
        number = self._schedule.upcoming()
        return None if number is None else NextPoint(number, self._space.point(number))

    def report(self, number: int, step: int, value: float) -> bool:
        """Take what a running point has logged; return whether to end it early."""
        return self._study is not None and self._study.report(self._trials[number], step, value)

    def ended(self, point: SweepPoint) -> None:
        """Make the worker of a point free again."""
        self._schedule.ended(point.number)
        if self._study is not None:
            trial = self._trials.pop(point.number)
            self._study.tell(trial, point.score, is_pruned=point.is_pruned)


class SampledPoints(PointSource):
    """Points that a sampler suggests.

    Args:
        spec: The sweep.
        study: Optuna's study.
        again: Points that were suggested before, and are to run again.
        scores: The scores of points that will not run again, None for one that has none: one that
            is suggested twice runs once, also if it has failed.
        suggests: Whether there are new points, too.
    """

    def __init__(
        self,
        spec: SweepSpec,
        study: Study,
        again: Collection[Trial],
        scores: Mapping[str, float | None],
        *,
        suggests: bool = True,
    ) -> None:
        self._spec, self._study = spec, study
        self._waiting = deque(again)
        self._open: set[int] = {trial.number for trial in again}
        self._scores = dict(scores)
        self._suggests = suggests
        self._again = {trial.number for trial in again if not trial.is_open}
        self._same: dict[str, list[Trial]] = {}  # as a point that runs, by its key

    def take(self) -> NextPoint | None:
        """Return the next point; None if none can start until one ends, or there are enough."""
        while True:
            if not self._waiting and self._suggests:
                self._suggest()
            if not self._waiting:
                return None
            trial = self._waiting.popleft()
            point = NextPoint(trial.number, trial.overrides, trial.number)
            if point.key in self._same:  # until that has ended
                self._same[point.key].append(trial)
                continue
            if point.key not in self._scores or trial.number in self._again:
                self._same[point.key] = []
                return point
            self._study.tell(trial.number, self._scores[point.key])
            self.repeated += 1
            self._open.discard(trial.number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Take what a running point has logged; return whether to end it early."""
        return self._study.report(number, step, value)

    def may_give_more(self) -> bool:
        """Return whether there may be points for workers that `take` has none for now."""
        return self._suggests and self._study.count < (self._spec.trials or 0)

    def ended(self, point: SweepPoint) -> None:
        """Report the score of a point."""
        key = point_key(point.overrides)
        self._waiting.extendleft(reversed(self._same.pop(key)))
        if point.result.status is not RunStatus.CANCELLED or point.is_pruned:
            self._scores[key] = point.score
        if point.number not in self._again:
            self._study.tell(point.number, point.score, is_pruned=point.is_pruned)
        self._open.discard(point.number)

    def _suggest(self) -> None:
        """Ask for the next point or, in batches, for all of the next batch."""
        count, total = self._study.count, self._spec.trials or 0
        batch = self._spec.batch
        if batch is None:
            end = min(count + 1, total)
        else:
            # those of one batch are suggested together, before any of them has run
            is_begun = count % batch != 0
            if self._open and not is_begun:
                return
            end = min((count // batch + 1) * batch, total)
        for _ in range(count, end):
            trial = self._study.ask()
            self._open.add(trial.number)
            self._waiting.append(trial)
