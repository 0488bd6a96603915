"""Runs the points of a sweep on one backend, a few at a time, and yields them as they end."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.pools import Pool, Pools
from ml_experiments.config.loading import load_config
from ml_experiments.config.overrides import assign, parse_override
from ml_experiments.errors import BudgetError, ConfigError, Error
from ml_experiments.execution.interruptions import held_interrupt
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.prepare import locate_experiment, prepare_run
from ml_experiments.runner.resume import attach_run, resume_run
from ml_experiments.runner.run import submit_with_code, take_earlier
from ml_experiments.runner.sweeps.folder import (
    POINT_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    RecordedRun,
    SweepFolder,
    SweepSpec,
)
from ml_experiments.runner.sweeps.points import (
    SweepPoint,
    comparable,
    end_early,
    ended_point,
    has_metric,
)
from ml_experiments.runner.sweeps.sources import NextPoint, PointSource
from ml_experiments.runner.sweeps.study import learns
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.settings import working_dir

_POLL_S = 0.5
_END_POLL_S = 0.05
# an experiment that is edited meanwhile may run as it was
_MAX_AHEAD_S = 1.0
_MAX_END_S = 10.0
# so many points may end without the metric that a sampler learns from, before the first that has it
_MAX_WITHOUT_METRIC = 3


@dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        total: How many points there are to run.
        earlier: How many of them had ended before this process took the sweep up.
        to_run: How many were left for it then.
        ended: Those that have ended since.
        running: The points that run now, by number: their overrides.
        repeated: How many points were suggested again, and so did not run again.
        began_at: When this process took the sweep up, as `time.monotonic()`.
        stopped: Why no more points start, if so.
        forecast: What the points are going to cost together; None where it is nothing or unknown.
    """

    total: int
    earlier: list[SweepPoint] = field(default_factory=list)
    to_run: int = 0
    ended: list[SweepPoint] = field(default_factory=list)
    running: dict[int, tuple[str, ...]] = field(default_factory=dict)
    repeated: int = 0
    began_at: float = field(default_factory=time.monotonic)
    stopped: str | None = None
    forecast: Forecast | None = None

    @property
    def points(self) -> list[SweepPoint]:
        """All points that have ended."""
        return [*self.earlier, *self.ended]

    def count(self, status: RunStatus) -> int:
        """Return how many points have ended so."""
        return sum(point.result.status is status for point in self.points)

    @property
    def is_whole(self) -> bool:
        """Whether every point has succeeded, or was ended early by a pruner."""
        good = [p for p in self.points if p.result.status is RunStatus.SUCCESS or p.is_pruned]
        return len(good) == self.total - self.repeated

    @property
    def cost_usd(self) -> float:
        """What the points cost by estimate."""
        return sum(point.cost_usd for point in self.points)

    @property
    def setups(self) -> int | None:
        """How many points did a set-up; None where none can be shared."""
        saved = [p.setup_saved_s for p in self.points if p.setup_saved_s is not None]
        return saved.count(0.0) if saved else None

    @property
    def setup_saved_s(self) -> float:
        """How many seconds of set-up the points saved by sharing."""
        return sum(point.setup_saved_s or 0.0 for point in self.points)

    @property
    def setup_saved_usd(self) -> float:
        """What these seconds would have cost by estimate."""
        return sum(
            (p.setup_saved_s or 0.0) * p.result.cost.get("estimate_usd", 0.0) / total_s
            for p in self.points
            if (total_s := p.result.timings.get("total_s"))
        )

    @property
    def left_s(self) -> float | None:
        """Seconds until the end, if the other points take as long; None if nothing is known."""
        if not self.ended:
            return None
        seconds = (time.monotonic() - self.began_at) / len(self.ended)
        return seconds * max(0, self.total - self.repeated - len(self.points))


class Controller:
    """Runs the points of one sweep.

    Args:
        spec: The sweep.
        folder: Its folder, which this process has locked.
        backend: Where the points run.
        source: Gives out the points.
        recorded: The runs that there are already, by point.
        observer: Receives the events of the runs.
        progress: Is kept up to date.
    """

    def __init__(
        self,
        spec: SweepSpec,
        folder: SweepFolder,
        backend: Backend,
        source: PointSource,
        recorded: Mapping[str, RecordedRun],
        observer: Observer,
        progress: Progress,
    ) -> None:
        self._spec, self._folder, self._backend = spec, folder, backend
        self._source, self._recorded, self._observer = source, dict(recorded), observer
        self._progress = progress
        self._base = base_config(spec)
        # the next point as it was prepared, and when, as time.monotonic()
        self._ahead: tuple[NextPoint, PreparedRun, float] | None = None
        self._code = describe_code(working_dir())
        self._running: dict[int, tuple[NextPoint, RunHandle | RunResult]] = {}
        self._events: queue.SimpleQueue[int | _Report] = queue.SimpleQueue()
        self._pruned: dict[int, str] = {}  # why
        self._held: NextPoint | None = None  # waits for money
        # the part of a cap that a point gets decides the timeout of its container
        self._pools = Pools(spec.parallel, one_each=spec.max_cost is not None)
        self._pool_of: dict[int, Pool] = {}
        self._budget, self._most = spec.budget, spec.handed_over
        # how many points in a row, from the first one; None once a point has it
        self._without_metric: int | None = 0 if learns(spec.sampler) else None

    def run(self) -> Iterator[SweepPoint]:
        """Yield the points as they end; leaving early ends those that run.

        Raises:
            KeyboardInterrupt: After the running points were cancelled.
        """
        try:
            while True:
                self._start_points()
                yield from self._decided(None)
                if not self._running:
                    return
                self._look_ahead()
                yield from self._decided(self._finish(self._wait()))
        finally:
            self._cancel()
            self._drop_ahead()
            while self._running:
                try:
                    event = self._events.get()
                    if isinstance(event, int):
                        self._decided(self._finish(event))
                except KeyboardInterrupt:
                    self._cancel(at_once=True)
            self._decided(None)
            self._progress.ended += self._source.held()
            if self._progress.stopped is not None:
                self._folder.note_stop(self._progress.stopped)

    def _decided(self, ended: SweepPoint | None) -> Sequence[SweepPoint]:
        """Return the points whose outcome is final now."""
        points = self._source.decided(ended)
        self._progress.ended += points
        return points

    def _start_points(self) -> None:
        while len(self._running) < self._most and self._progress.stopped is None:
            point = self._held or self._source.take()
            self._held = None
            self._progress.repeated = self._source.repeated
            if point is None:
                if not self._source.may_give_more():
                    for pool in self._pools.end_idle():
                        self._backend.end_pool(pool)
                return
            with held_interrupt() as interrupt:  # else a run that has started could go unnoticed
                has_room = self._start(point)
            if interrupt.fired:
                raise KeyboardInterrupt
            if not has_room:  # until a running point has ended and left some money
                self._held = point
                return

    def _start(self, point: NextPoint) -> bool:
        """Start a point; return whether its budget had room for it."""
        number = point.number
        self._progress.running[number] = point.overrides
        try:
            started: RunHandle | RunResult = self._submit(point)
        except BudgetError as e:
            del self._progress.running[number]
            self._pools.free(self._pool_of.pop(number, None))
            if not self._running:
                self._progress.stopped = str(e)
            return False
        except Error as e:  # such as a combination that the config's own validator refuses
            kind = ErrorKind.CONFIG if isinstance(e, ConfigError) else ErrorKind.INFRASTRUCTURE
            error = RunError(kind, type(e).__name__, str(e))
            started = RunResult("", RunStatus.ERROR, self._spec.experiment, error=error)
        self._running[number] = point, started
        if isinstance(started, RunHandle):
            started.when_ended(lambda: self._events.put(number))
        else:
            self._events.put(number)
        return True

    def _submit(self, point: NextPoint) -> RunHandle | RunResult:
        def choose_pool(setup_key: str | None) -> Pool:
            self._pool_of[point.number] = self._pools.take(setup_key)
            return self._pool_of[point.number]

        budget = self._budget
        if budget is not None and point.max_usd is not None:
            budget = dataclasses.replace(budget, max_usd_each=point.max_usd)
        recorded = self._recorded.get(point.run_key)
        if recorded is not None:
            existing = recorded.folder
            is_remote = self._backend.outlives_client  # it may go on there
            outcome = existing.outcome() if is_remote else _wait_for_end(existing)
            if outcome.status is RunStatus.SUCCESS:
                return outcome
            # one that its client has not handed over can't go on, whatever became of the client
            is_remote = is_remote and existing.read_manifest().is_elsewhere
            if is_remote and not outcome.status.has_ended:
                return attach_run(
                    existing, backend=self._backend, observer=self._observer_of(point)
                )
            return resume_run(
                existing,
                backend=self._backend,
                observer=self._observer_of(point),
                force=True,
                budget=budget,
                choose_pool=choose_pool,
                place=locate_experiment(self._spec.experiment),
            )
        prepared = self._prepare(point)
        earlier, prepared = take_earlier(
            prepared, self._backend, self._folder.runs_dir, self._observer
        )
        if earlier is not None:
            self._folder.record_reused(point.run_key, point.overrides, earlier.folder)
            return earlier
        return submit_with_code(
            dataclasses.replace(prepared, budget=budget, pool=choose_pool(prepared.setup_key)),
            self._code,
            backend=self._backend,
            runs_dir=self._folder.runs_dir,
            observer=self._observer_of(point),
        )

    def _look_ahead(self) -> None:
        """Prepare a point while others run, unless one of them has ended already."""
        point = self._source.upcoming() if self._events.empty() else None
        if point is None or self._progress.stopped is not None or point.run_key in self._recorded:
            return
        self._drop_ahead()
        with contextlib.suppress(Error):  # told when it is to start
            prepared = prepare_point(self._spec, self._base, point, self._backend)
            self._ahead = point, prepared, time.monotonic()

    def _prepare(self, point: NextPoint) -> PreparedRun:
        if self._ahead is not None:
            known, prepared, at = self._ahead
            if known == point and time.monotonic() - at <= _MAX_AHEAD_S:
                self._ahead = None
                return prepared
        return prepare_point(self._spec, self._base, point, self._backend)

    def _drop_ahead(self) -> None:
        if self._ahead is not None and self._ahead[1].template is not None:
            self._backend.templates.release(self._ahead[1].template)
        self._ahead = None

    def _observer_of(self, point: NextPoint) -> Observer:
        metric = self._spec.pruner_metric
        if metric is None:
            return self._observer
        return _Reports(self._observer, self._events, point.number, metric)

    def _wait(self) -> int:
        """Return a point that has ended."""
        while True:
            try:
                event = self._events.get(timeout=_POLL_S)
                if isinstance(event, int):
                    return event
                self._compare(event)
            except queue.Empty:
                if self._progress.stopped is None and self._folder.stop_file.exists():
                    self._progress.stopped = "it was stopped by `ml-experiments sweep stop`"
                    self._cancel()

    def _compare(self, report: _Report) -> None:
        """Give what a point has logged to the pruner, and end a poor one."""
        number = report.number
        if number not in self._running or number in self._pruned:
            return
        if self._source.report(number, report.step, report.value):
            self._pruned[number] = (
                f"{self._spec.pruner_metric} is {report.value:.6g} at step {report.step}, poor "
                f"beside the other points (pruner {self._spec.pruner})"
            )
            started = self._running[number][1]
            assert isinstance(started, RunHandle)
            started.cancel()

    def _finish(self, number: int) -> SweepPoint:
        point, started = self._running.pop(number)
        self._pools.free(self._pool_of.pop(number, None))
        result = _outcome_of(started)
        why = self._pruned.pop(number, None)
        if why is not None and result.status is RunStatus.CANCELLED:
            result = end_early(result, why)
        ended = ended_point(number, point.overrides, result, self._spec.metric)
        progress = self._progress
        progress.running.pop(number, None)
        if result.run_id:  # it may run again
            run = RunFolder(self._folder.runs_dir / result.run_id)
            self._recorded[point.run_key] = RecordedRun(run, point.trial or 0, point.overrides)
        self._source.ended(ended)
        self._look_for_metric(ended)
        if self._spec.stops_at_failure and result.status is RunStatus.ERROR:
            progress.stopped = progress.stopped or f"point {number} has failed"
            self._cancel()
        return ended

    def _look_for_metric(self, ended: SweepPoint) -> None:
        """Start no more points where none of the first ones has what the sampler learns from."""
        metric, count = self._spec.metric, self._without_metric
        if count is None or metric is None or ended.result.status is not RunStatus.SUCCESS:
            return
        self._without_metric = None if has_metric(ended.result, metric) else count + 1
        if self._without_metric == _MAX_WITHOUT_METRIC and self._progress.stopped is None:
            self._progress.stopped = (
                f"none of the first {_MAX_WITHOUT_METRIC} points has a score: {ended.problem}"
            )

    def _cancel(self, *, at_once: bool = False) -> None:
        for _, started in self._running.values():
            if isinstance(started, RunHandle):
                started.cancel(at_once=at_once)


@dataclass(frozen=True)
class _Report:
    """What a point has logged."""

    number: int
    step: int
    value: float


class _Reports(Observer):
    """Passes on the events of one run, and its metric to the controller."""

    def __init__(
        self,
        observer: Observer,
        events: queue.SimpleQueue[int | _Report],
        number: int,
        metric: str,
    ) -> None:
        self._events, self._number, self._metric = events, number, metric
        self.started, self.notice = observer.started, observer.notice  # type: ignore[method-assign]
        self.log, self.progress = observer.log, observer.progress  # type: ignore[method-assign]
        self.finished = observer.finished  # type: ignore[method-assign]
        self._pass_on = observer.metrics

    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:
        """Send the metric to the controller, if it is there at this step."""
        found = comparable(step, metrics.get(self._metric))
        if found is not None:
            self._events.put(_Report(self._number, *found))
        self._pass_on(spec, metrics, step)


def _outcome_of(started: RunHandle | RunResult) -> RunResult:
    """Return what came of a point; one whose outcome did not come here does not end the sweep."""
    if isinstance(started, RunResult):
        return started
    try:
        return started.result()
    except Error as e:  # such as a connection to Modal that was lost
        error = RunError(ErrorKind.INFRASTRUCTURE, type(e).__name__, str(e))
        experiment = started.spec.experiment
        return RunResult(started.run_id, RunStatus.ERROR, experiment, error=error)


def _wait_for_end(folder: RunFolder) -> RunResult:
    """Return the outcome of a run whose client has died, which ends its worker, too."""
    ends_at = time.monotonic() + _MAX_END_S
    while not (outcome := folder.outcome()).status.has_ended and time.monotonic() < ends_at:
        time.sleep(_END_POLL_S)
    return outcome


def base_config(spec: SweepSpec) -> dict[str, Any]:
    """Return what all points share of their configs."""
    config: dict[str, Any] = {}
    for override in spec.fixed:
        assign(config, *parse_override(override))
    return config


def config_of(base: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the config of a point."""
    return load_config(None, overrides, base=base)


def prepare_point(
    spec: SweepSpec, base: Mapping[str, Any], point: NextPoint, backend: Backend
) -> PreparedRun:
    """Check a point as it is going to run.

    Raises:
        Error: If it could not work.
    """
    config = config_of(base, point.overrides)
    prepared = prepare_run(spec.experiment, config, backend=backend, **options_of(spec, point))
    if spec.is_seed_drawn:
        prepared = dataclasses.replace(prepared, takes_any_seed=True)
    return prepared


def options_of(spec: SweepSpec, point: NextPoint) -> dict[str, Any]:
    """Return the options of a point's run."""
    tags = {**spec.options.get("tags", {}), SWEEP_TAG: spec.sweep_id, POINT_TAG: point.key}
    if point.trial is not None:
        tags[TRIAL_TAG] = str(point.trial)
    given = {**spec.options, "seed": spec.seed, "tags": tags}
    if spec.name is not None:
        given["name"] = f"{spec.name}-{point.number}"
    return given
