"""Starts sweeps, and takes them up again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend
from ml_experiments.backends.forecast import Forecast
from ml_experiments.errors import ConfigError, Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import give_back_unstarted_sweep
from ml_experiments.runner.sweeps.checking import Checked, check_points
from ml_experiments.runner.sweeps.controller import Controller, Progress
from ml_experiments.runner.sweeps.folder import (
    RecordedRun,
    SweepFolder,
    SweepSpec,
    reserved_name,
)
from ml_experiments.runner.sweeps.planning import SweepCall, check_cap, plan_sweep
from ml_experiments.runner.sweeps.points import SweepPoint
from ml_experiments.runner.sweeps.recorded import resume_grid, resume_sampled
from ml_experiments.runner.sweeps.rounds import in_rounds
from ml_experiments.runner.sweeps.search_space.space import read_space
from ml_experiments.runner.sweeps.sources import GridPoints, PointSource, SampledPoints
from ml_experiments.runner.sweeps.study import (
    Study,
    check_packages,
)
from ml_experiments.settings import runs_dir as default_runs_dir

OnBegin = Callable[[SweepFolder, SweepSpec, Progress], object]


def sweep(
    experiment: Callable[..., Any] | str,
    space: Mapping[str, Any] | Sequence[str],
    *,
    backend: str = "local",
    runs_dir: Path | None = None,
    observer: Observer | None = None,
    backend_options: Mapping[str, Any] | None = None,
    **options: Unpack[SweepCall],
) -> Iterator[SweepPoint]:
    """Run an experiment at the points of a search space, and yield the points as they end.

    Example:
        ```python
        from ml_experiments import sweep

        def train(lr=0.1, steps=3):
            return {"loss": (1 - lr) ** steps}

        if __name__ == "__main__":
            space = {"lr": [0.1, 0.3], "steps": range(1, 4)}
            points = list(sweep(train, space, parallel=2, minimize="results.loss"))
            best = min(points, key=lambda point: point.score)
            print(len(points), best.values)  # 6 {'lr': 0.3, 'steps': 3}
        ```

    Args:
        experiment: A class with `run()`, a function, or the import path of one.
        space: Names of fields, each with a list of values, a `range`, or a form such as
            `"log(1e-5, 1e-2)"`; any other value is the same for all points. Or a list as on the
            command line: `["lr=1e-4,3e-4", "seed=range:5"]`.
        backend: The name of a backend.
        runs_dir: Where the run folders go; by default what the settings say.
        observer: Receives logs, progress and metrics of the runs; nothing is shown without one.
        backend_options: Passed to the backend.
        **options: See `RunOptions` and `SweepOptions`.

    Raises:
        Error: If the space or a point of it is not valid; nothing was started. What happens in
            the runs is in their results.
    """
    spec = plan_sweep(
        experiment,
        read_space((), data=space) if isinstance(space, Mapping) else read_space(space),
        backend=backend,
        backend_options=backend_options,
        **options,
    )
    return start_sweep(
        spec,
        runs_dir=runs_dir,
        observer=observer or Observer(),
        prefetch=bool(options.get("prefetch")),
    )


def start_sweep(
    spec: SweepSpec,
    *,
    runs_dir: Path | None,
    observer: Observer,
    prefetch: bool = False,
    approve: Callable[[Forecast], object] = lambda _forecast: None,
    on_begin: OnBegin = lambda _folder, _spec, _progress: None,
) -> Iterator[SweepPoint]:
    """Check all points, make the sweep's folder, and yield the points as they end.

    Args:
        spec: The sweep.
        runs_dir: Where the run folders go; by default what the settings say.
        observer: Receives the events of the runs.
        prefetch: Whether to download the models that the points name first.
        approve: Is called with what the sweep is going to cost, if anything; it may raise.
        on_begin: Is called when all points were checked, before the first one starts.
    """
    place = Path(runs_dir or default_runs_dir()).expanduser().resolve()
    with reserved_name(place, spec.name), opened(spec) as backend:
        checked = check_points(spec, backend)
        if checked.forecast is not None:
            approve(checked.forecast)
            checked.check_room(spec, backend, place)
        if prefetch:
            checked.prefetch(backend, observer)
        folder = SweepFolder.create(place, spec, Redactor((*secret_values(), *checked.secrets)))
        with folder.locked():
            progress = Progress(spec.total or 0, forecast=checked.forecast)
            source: PointSource
            if spec.sampler == "grid":
                compared = Study(spec, None, lambda: ()) if spec.has_optunas_pruner else None
                keys = enumerate(checked.setup_keys)
                source = GridPoints(spec, keys, compared)
            else:
                study = Study(spec, folder.journal, lambda: ())
                source = SampledPoints(spec, study, (), {})
            source = in_rounds(source, spec, spec.total or 0, checked.forecast)
            on_begin(folder, spec, progress)
            yield from Controller(spec, folder, backend, source, {}, observer, progress).run()


def resume_sweep(
    folder: SweepFolder,
    *,
    observer: Observer,
    failed_only: bool = False,
    change: Callable[[SweepSpec], SweepSpec] | None = None,
    spec: SweepSpec | None = None,
    approve: Callable[[Forecast], object] = lambda _forecast: None,
    on_begin: OnBegin = lambda _folder, _spec, _progress: None,
    dry_run: bool = False,
) -> Iterator[SweepPoint]:
    """Run the points of a sweep that have no result yet, and yield them as they end.

    Args:
        folder: The sweep.
        observer: Receives the events of the runs.
        failed_only: Whether to run only those that have failed.
        change: Extends the sweep first; recorded once its points were checked.
        spec: The sweep as it was asked for, where its record may lack secrets.
        approve: Is called with what these points are going to cost, if anything; it may raise.
        on_begin: Is called when all is checked, before the first point starts.
        dry_run: Whether to start none, and record no change.

    Raises:
        Error: If another process runs the sweep, or its record had secrets taken out.
    """
    with taken_up(folder, failed_only=failed_only, change=change, spec=spec) as found:
        spec, progress = found.spec, found.progress
        if dry_run:
            on_begin(folder, spec, progress)
            return
        if progress.forecast is not None:
            approve(progress.forecast)
        if change is not None:
            folder.write_spec(spec, Redactor(secret_values()))
        on_begin(folder, spec, progress)
        yield from Controller(
            spec, folder, found.backend, found.source, found.recorded, observer, progress
        ).run()


@dataclass(frozen=True)
class TakenUp:
    """A sweep that was taken up again.

    Attributes:
        spec: The sweep, extended if it was to be.
        backend: Where its points run.
        recorded: The runs that there are, by point.
        source: Gives out the points that are left.
        progress: How far the sweep is.
        checked: What is known of the points that are left; None if there is none.
    """

    spec: SweepSpec
    backend: Backend
    recorded: dict[str, RecordedRun]
    source: PointSource
    progress: Progress
    checked: Checked | None


@contextlib.contextmanager
def taken_up(
    folder: SweepFolder,
    *,
    failed_only: bool = False,
    change: Callable[[SweepSpec], SweepSpec] | None = None,
    spec: SweepSpec | None = None,
) -> Iterator[TakenUp]:
    """Lock a sweep for a block, and check the points that are left; see `resume_sweep`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked())
        if not folder.remote_file.exists():
            give_back_unstarted_sweep(folder.path)
        spec = spec or folder.read_spec()
        if Redactor.MARK in str((spec.fixed, spec.axes, spec.options, spec.backend_options)):
            raise Error(
                f"the config or the options of sweep {spec.sweep_id} held a secret, which was "
                "not recorded; start a new sweep with it"
            )
        stack.enter_context(reserved_name(folder.runs_dir, spec.name))
        # relative paths in configs, and modules, are those of the folder it was started in
        with contextlib.suppress(OSError):
            stack.enter_context(contextlib.chdir(spec.working_dir))
        if spec.sampler != "grid" or spec.has_optunas_pruner:
            check_packages(spec.sampler, spec.pruner)
        backend = stack.enter_context(opened(spec))
        if change is not None:
            spec = change(spec)
        recorded = folder.recorded_runs()
        progress = Progress(spec.total or 0)
        resume = resume_grid if spec.sampler == "grid" else resume_sampled
        source, checked = resume(spec, folder, backend, recorded, progress, failed_only=failed_only)
        if change is not None and checked is None:
            check_points(spec, backend)
        yield TakenUp(spec, backend, recorded, source, progress, checked)


def extended(
    spec: SweepSpec, axes: Sequence[str], trials: int | None, max_cost: float | None = None
) -> SweepSpec:
    """Return a sweep with more values on its axes, with more trials, or with another cap.

    Raises:
        ConfigError: If that is not more than it has, or a cap would have no effect.
    """
    is_sampled = spec.sampler != "grid"
    if trials is not None and (not is_sampled or trials <= (spec.trials or 0)):
        has = f"has {spec.trials}; write a larger number" if is_sampled else "is a grid"
        raise ConfigError(f"--trials {trials}: the sweep {has}")
    space = spec.space
    if axes:
        space = space.extended(read_space(axes).axes, is_sampled=is_sampled)
    if max_cost is not None:
        check_cap(spec.backend, spec.options)
        if spec.pruner == "halving" and spec.max_cost is None:
            raise ConfigError("--max-cost: this sweep is halved by steps, and would be by money")
    return dataclasses.replace(
        spec,
        axes=space.to_dict(),
        trials=trials or spec.trials,
        max_cost=spec.max_cost if max_cost is None else max_cost,
    )


def opened(spec: SweepSpec) -> Backend:
    """Return the backend of a sweep."""
    options = dict(spec.backend_options)
    if spec.backend == "local":
        options["max_workers"] = spec.parallel
    return open_backend(spec.backend, **options)
