"""Runs the cases of a bench: one after another on each GPU type, the GPU types side by side."""

from __future__ import annotations

import dataclasses
import queue
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.forecast import Forecast
from ml_experiments.config.loading import load_config
from ml_experiments.errors import BudgetError, ConfigError, Error
from ml_experiments.execution.interruptions import held_interrupt
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.bench.folder import (
    BENCH_TAG,
    CASE_TAG,
    REPEAT_TAG,
    WARM_UP,
    BenchFolder,
    BenchSpec,
    Case,
)
from ml_experiments.runner.budget.reserving import Budget, reserve
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.run import submit_with_code
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun
from ml_experiments.settings import working_dir


@dataclass(frozen=True)
class EndedRun:
    """A run of a bench that has ended.

    Attributes:
        case: What it belongs to.
        repeat: Which one it is; 0 warmed up.
        result: What came of it.
        count: How many have ended so far.
        total: How many there are to run, if all goes well.
    """

    case: Case
    repeat: int
    result: RunResult
    count: int
    total: int


@dataclass
class _Lane:
    """The cases of one GPU type: one at a time, so that nothing disturbs the measurement."""

    waiting: deque[tuple[Case, int]]
    running: tuple[Case, int, RunHandle] | None = None


@dataclass(frozen=True)
class CheckedCases:
    """What is known of cases that were checked.

    Attributes:
        forecast: What all of their runs are going to cost; None where that is nothing.
        secrets: The secrets in their configs.
        models: The models on the Hub that their configs name.
        runs: A run of each case.
    """

    forecast: Forecast | None
    secrets: tuple[str, ...]
    models: tuple[str, ...]
    runs: tuple[PreparedRun, ...]


def check_cases(spec: BenchSpec, backend: Backend, cases: Sequence[Case]) -> CheckedCases:
    """Find every mistake that can be found before anything starts.

    Raises:
        Error: If a case could not work.
    """
    problems: dict[str, str] = {}
    prepared: list[PreparedRun] = []
    for case in cases:
        try:
            run = prepare_run(
                spec.experiment, _config(spec, case), backend=backend, **_options(spec, case, 0)
            )
        except ConfigError as e:
            for problem in e.problems or (str(e),):
                problems.setdefault(problem, case.key.removeprefix("here").strip())
            continue
        if run.template is not None:
            backend.templates.release(run.template)
        prepared.append(run)
    if problems:
        raise ConfigError(
            f"cases of the bench are not valid for {spec.experiment}; nothing was started:",
            tuple(
                problem + (f" (at {case})" if case else "") for problem, case in problems.items()
            ),
        )
    forecasts = [run.forecast for run in prepared if run.forecast is not None]
    return CheckedCases(
        _sum_forecasts(forecasts, 1 + spec.repeat, spec.max_cost) if forecasts else None,
        tuple(dict.fromkeys(secret for run in prepared for secret in run.secrets)),
        tuple(dict.fromkeys(model for run in prepared for model in run.hub_models)),
        tuple(prepared),
    )


def _sum_forecasts(forecasts: Sequence[Forecast], runs: int, max_usd: float | None) -> Forecast:
    """Return what cases cost together, each of which has so many runs, within a cap if given."""

    def total(name: str) -> float | None:
        amounts = [getattr(forecast, name) for forecast in forecasts]
        return None if None in amounts else sum(amounts)

    of_one_run_each = dataclasses.replace(
        forecasts[0],
        estimate_usd=total("estimate_usd"),
        worst_case_usd=total("worst_case_usd"),
        least_usd=total("least_usd"),
        low_usd=total("low_usd"),
        high_usd=total("high_usd"),
        all_attempts_usd=None,
        earlier_runs=min(forecast.earlier_runs for forecast in forecasts),
    )
    together = of_one_run_each.for_runs(runs, max_usd)
    return dataclasses.replace(together, runs=runs * len(forecasts))


def _config(spec: BenchSpec, case: Case) -> Mapping[str, Any]:
    return load_config(None, (*spec.fixed, *case.overrides))


def _options(spec: BenchSpec, case: Case, repeat: int) -> dict[str, Any]:
    tags = {BENCH_TAG: spec.bench_id, CASE_TAG: case.key, REPEAT_TAG: str(repeat or WARM_UP)}
    return {
        "gpu": case.gpu,
        "launch": spec.launch,
        "nproc_per_node": spec.nproc_per_node,
        "nodes": spec.nodes,
        "timeout_s": spec.timeout_s,
        "seed": spec.seed,
        "name": spec.name,
        "tags": {**spec.tags, **tags},
    }


@dataclass
class CaseRunner:
    """Runs cases, each in its turn.

    Attributes:
        spec: The bench.
        folder: Its folder, which this process has locked.
        backend: Where the runs execute.
        cases: Those to run.
        problems: Why cases have no runs, by their keys.
        stopped: Why no more runs start, if so.
    """

    spec: BenchSpec
    folder: BenchFolder
    backend: Backend
    cases: Sequence[Case]
    problems: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    def run(self) -> Generator[EndedRun]:
        """Yield the runs as they end; leaving early ends those that run.

        Raises:
            KeyboardInterrupt: After the running ones were cancelled.
        """
        self._code = describe_code(working_dir())
        self._events: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self._lanes = [
            _Lane(
                deque(
                    (case, repeat)
                    for case in self.cases
                    if case.gpu == gpu
                    for repeat in range(1 + self.spec.repeat)
                )
            )
            for gpu in dict.fromkeys(case.gpu for case in self.cases)
        ]
        self._total = sum(len(lane.waiting) for lane in self._lanes)
        self._count = 0
        try:
            while self._start_runs():
                yield self._finish(self._events.get())
        finally:
            self._cancel()
            while any(lane.running for lane in self._lanes):
                try:
                    self._finish(self._events.get())
                except KeyboardInterrupt:
                    self._cancel(at_once=True)

    def _start_runs(self) -> bool:
        """Start what can start; return whether anything runs."""
        for lane in self._lanes:
            while lane.waiting and lane.running is None and self.stopped is None:
                with held_interrupt() as interrupt:  # else a started run could go unnoticed
                    has_room = self._start(lane)
                if interrupt.fired:
                    raise KeyboardInterrupt
                if not has_room:  # until another lane's run has ended and left some money
                    break
        return any(lane.running for lane in self._lanes)

    def _start(self, lane: _Lane) -> bool:
        """Start the next run of a lane; return whether the budget had room for it."""
        case, repeat = lane.waiting[0]
        try:
            handle = self._submit(case, repeat)
        except BudgetError as e:
            if not any(other.running for other in self._lanes):
                self.stopped = str(e)
            return False
        except Error as e:
            self.problems[case.key] = str(e)
            self._skip(lane, case)
            return True
        lane.waiting.popleft()
        lane.running = case, repeat, handle
        handle.when_ended(lambda: self._events.put(lane))
        return True

    def _submit(self, case: Case, repeat: int) -> RunHandle:
        spec = self.spec
        prepared = prepare_run(
            spec.experiment,
            _config(spec, case),
            backend=self.backend,
            **_options(spec, case, repeat),
        )
        if spec.max_cost is not None:
            # the same for all runs, because a container is shared by runs of one timeout only; half
            # of what the GPU type may cost, so that there is still as much for the last ones
            each = spec.max_cost / len(self._lanes) / 2
            budget = Budget(spec.scope, spec.max_cost, each)
            [prepared] = reserve([prepared], self.backend, self.folder.runs_dir, budget=budget)
        return submit_with_code(
            prepared,
            self._code,
            backend=self.backend,
            runs_dir=self.folder.runs_dir,
            observer=Observer(),  # what the runs print is in their logs
        )

    def _finish(self, lane: _Lane) -> EndedRun:
        assert lane.running is not None
        case, repeat, handle = lane.running
        result = handle.result()
        lane.running = None
        self._count += 1
        if result.status is not RunStatus.SUCCESS:
            self._skip(lane, case)  # more of the same would be no better
        return EndedRun(case, repeat, result, self._count, self._total)

    def _skip(self, lane: _Lane, case: Case) -> None:
        before = len(lane.waiting)
        lane.waiting = deque(pair for pair in lane.waiting if pair[0] != case)
        self._total -= before - len(lane.waiting)

    def _cancel(self, *, at_once: bool = False) -> None:
        for lane in self._lanes:
            lane.waiting.clear()
            if lane.running is not None:
                lane.running[2].cancel(at_once=at_once)
