"""Finds the points of a sweep that could not work, before the first one starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.backends.base import Backend
from ml_experiments.backends.forecast import Forecast
from ml_experiments.errors import ConfigError
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.worker.messages import Description
from ml_experiments.runner.budget.reserving import reserve
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.sweeps.controller import base_config, config_of, options_of
from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.search_space.axes import Axis, Interval
from ml_experiments.runner.sweeps.search_space.space import Space, point_key
from ml_experiments.runner.sweeps.sources import NextPoint
from ml_experiments.runs.spec import PreparedRun

_MAX_PROBLEMS = 20
_BATCH = 100  # points that are sent to be validated together


@dataclass(frozen=True)
class Checked:
    """What is known of points that were checked.

    Attributes:
        first: The first point, as it would be submitted.
        forecast: What all points of the sweep are going to cost; None where that is nothing.
        setup_keys: The set-up key of each point, in their order.
        secrets: The secrets in their configs.
        models: The models on the Hub that their configs name.
    """

    first: PreparedRun
    forecast: Forecast | None
    setup_keys: list[str | None]
    secrets: tuple[str, ...]
    models: tuple[str, ...]

    def prefetch(self, backend: Backend, observer: Observer) -> None:
        """Download the models.

        Raises:
            CacheError: If one can't be downloaded.
        """
        for model in self.models:
            backend.prefetch(model, observer, self.first.spec)

    def check_room(self, spec: SweepSpec, backend: Backend, runs_dir: Path) -> None:
        """Make sure that the caps have room for the start of a point.

        Raises:
            BudgetError: If not, or it can't be known.
        """
        reserve([self.first], backend, runs_dir, budget=spec.budget, is_kept=False)


def check_points(
    spec: SweepSpec, backend: Backend, numbers: Sequence[int] | None = None
) -> Checked:
    """Validate the config of each point of a grid, or of a sampler's axes the ends and values.

    Args:
        spec: The sweep.
        backend: Where it will run.
        numbers: Which points of the grid; all by default.

    Raises:
        Error: If the experiment can't be imported, or points are not valid: it names the problems.
    """
    space = spec.space
    if spec.sampler != "grid":
        points: Iterable[tuple[str, ...]] = edge_points(space)
    elif numbers is None:
        points = space.points()
    else:
        points = map(space.point, numbers)
    return _check(spec, backend, points)


def _check(spec: SweepSpec, backend: Backend, points: Iterable[tuple[str, ...]]) -> Checked:
    first: PreparedRun | None = None
    forecast: Forecast | None = None
    keys: list[str | None] = []
    known_keys: dict[str | None, str | None] = {}  # one string for all points that share it
    secrets: dict[str, None] = {}
    models: dict[str, None] = {}
    problems: dict[str, list[str]] = {}
    for overrides, found in _described_points(spec, backend, points):
        if isinstance(found, ConfigError):
            for problem in found.problems or (str(found),):
                problems.setdefault(problem, []).append(point_key(overrides))
            if len(problems) > _MAX_PROBLEMS:
                break
            continue
        if isinstance(found, PreparedRun):
            first, forecast = found, found.forecast
        keys.append(known_keys.setdefault(found.setup_key, found.setup_key))
        secrets |= dict.fromkeys(found.secrets)
        models |= dict.fromkeys(found.hub_models)
    if problems or first is None:
        described = [_described(problem, where) for problem, where in problems.items()]
        if any(problem.startswith("seed: unknown field") for problem in problems):
            described.append(
                "to vary the seed, give the config a field `seed`; --seed N is for all"
            )
        raise ConfigError(
            f"points of the sweep are not valid for {spec.experiment}; nothing was started:",
            tuple(described),
        )
    count = len(keys) if spec.sampler == "grid" else spec.trials or 0
    whole = None if forecast is None else forecast.for_runs(count, spec.max_cost)
    return Checked(first, whole, keys, tuple(secrets), tuple(models))


def _described_points(
    spec: SweepSpec, backend: Backend, points: Iterable[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], PreparedRun | Description | ConfigError]]:
    """Yield points with what is known of them: the first valid one as it would be submitted."""
    base = base_config(spec)
    first: PreparedRun | None = None
    remaining = enumerate(points)
    for number, overrides in remaining:
        options = options_of(spec, NextPoint(number, overrides))
        try:
            config = config_of(base, overrides)
            first = prepare_run(spec.experiment, config, backend=backend, **options)
        except ConfigError as e:
            yield overrides, e
            continue
        if first.template is not None:
            backend.templates.release(first.template)
        yield overrides, first
        break
    while batch := [overrides for _, overrides in itertools.islice(remaining, _BATCH)]:
        assert first is not None
        configs = []
        for overrides in batch:
            try:
                configs.append((overrides, config_of(base, overrides)))
            except ConfigError as e:
                yield overrides, e
        found = backend.describe_each(
            first.spec.experiment,
            first.spec.import_paths,
            [config for _, config in configs],
            spec.seed,
        )
        yield from zip((overrides for overrides, _ in configs), found, strict=True)


def edge_points(space: Space) -> Iterator[tuple[str, ...]]:
    """Yield points in which each axis takes its ends or values, the others their first one."""
    values = {axis.name: _edges(axis) for axis in space.axes}
    firsts = {name: found[0] for name, found in values.items()}
    yield tuple(f"{name}={value}" for name, value in firsts.items())
    for varied, found in values.items():
        for value in found[1:]:
            yield tuple(f"{n}={v}" for n, v in {**firsts, varied: value}.items())


def _edges(axis: Axis) -> Sequence[str]:
    if not isinstance(axis, Interval):
        return axis.values
    ends = (int(axis.low), int(axis.high)) if axis.is_int else (axis.low, axis.high)
    return tuple(dict.fromkeys(map(str, ends)))


def _described(problem: str, where: Sequence[str]) -> str:
    more = f" and {len(where) - 1:,} more" if len(where) > 1 else ""
    shown = where[0] if len(where[0]) <= 100 else f"{where[0][:97]}..."
    return f"{problem} (at {shown}{more})"
