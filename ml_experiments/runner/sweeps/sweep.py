"""Starts sweeps, and takes them up again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend
from ml_experiments.backends.forecast import Forecast
from ml_experiments.config.options import read_options
from ml_experiments.errors import ConfigError, Error, suggest
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.options import RunOptions
from ml_experiments.runner.prepare import locate_experiment
from ml_experiments.runner.sweeps.checking import check_points
from ml_experiments.runner.sweeps.controller import Controller, Progress
from ml_experiments.runner.sweeps.folder import (
    RecordedRun,
    SweepFolder,
    SweepSpec,
    reserved_name,
)
from ml_experiments.runner.sweeps.options import SweepOptions
from ml_experiments.runner.sweeps.points import SweepPoint, ended_point
from ml_experiments.runner.sweeps.sources import GridPoints, PointSource, SampledPoints
from ml_experiments.runner.sweeps.space import Space, point_key, read_space
from ml_experiments.runner.sweeps.study import (
    INDEPENDENT,
    PRUNERS,
    SAMPLERS,
    PastTrial,
    Study,
    Trial,
    check_packages,
)
from ml_experiments.runs.result import RunStatus
from ml_experiments.runs.spec import new_run_id
from ml_experiments.settings import runs_dir as default_runs_dir
from ml_experiments.settings import working_dir

_PARALLEL_ELSEWHERE = 8
_DRAWN_SEEDS = 2**31

OnBegin = Callable[[SweepFolder, SweepSpec, Progress], object]


class SweepCall(RunOptions, SweepOptions, total=False):
    """What `sweep` takes: the options of runs, and those of sweeps."""


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


def plan_sweep(
    experiment: Callable[..., Any] | str,
    space: Space,
    *,
    fixed: Sequence[str] = (),
    backend: str = "local",
    backend_options: Mapping[str, Any] | None = None,
    **options: Unpack[SweepCall],
) -> SweepSpec:
    """Check what is asked of a sweep, as far as the experiment need not be known.

    Raises:
        Error: If options do not go together, or a package is missing.
    """
    given = dict(read_options(SweepCall, options, "sweep"))
    given.pop("prefetch", None)
    runs = {name: given.pop(name) for name in RunOptions.__annotations__ if name in given}
    metric, direction = _objective(given)
    sampler = _sampler(given, space, metric)
    parallel = given.get("parallel") or _default_parallel(backend)
    location, _ = locate_experiment(experiment)
    if "notify" in runs:
        raise ConfigError("notify is for single runs; a sweep ends when its command does")
    if "run_id" in runs:
        raise ConfigError("run_id is for single runs; each point of a sweep has a run of its own")
    seed, max_cost = runs.pop("seed", None), runs.pop("max_cost", None)
    if max_cost is not None and backend != "modal" and not runs.get("escalate_to"):
        raise ConfigError("max_cost caps what points cost on Modal; here they cost nothing")
    return SweepSpec(
        sweep_id=new_run_id(),
        experiment=location,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        axes=space.to_dict(),
        fixed=tuple(fixed),
        backend=backend,
        backend_options=dict(backend_options or {}),
        seed=secrets.randbelow(_DRAWN_SEEDS) if seed is None else seed,
        is_seed_drawn=seed is None,
        parallel=1 if backend == "debug" else parallel,
        sampler=sampler,
        trials=given.get("trials"),
        metric=metric,
        direction=direction,
        batch=given.get("batch"),
        pruner=_pruner(given, direction),
        pruner_metric=given.get("metric"),
        min_steps=given.get("min_steps", 1),
        max_cost=max_cost,
        stops_at_failure=given.get("fail_fast", False),
        name=runs.pop("name", None),
        working_dir=str(working_dir()),
        options=runs,
    )


def describe_choice(spec: SweepSpec) -> str:
    """Return how the points of a sweep are chosen, as in `50 points, suggested by tpe`."""
    total = f"{spec.total:,} point{'' if spec.total == 1 else 's'}"
    at_once = f", {spec.parallel} at a time" if spec.parallel > 1 else ""
    if spec.sampler == "grid":
        return f"{total}{at_once}"
    chosen = f"{total}, suggested by {spec.sampler} (seed {spec.seed}){at_once}"
    if spec.sampler in INDEPENDENT:
        return chosen
    if spec.batch is not None:
        return f"{chosen}; in batches of {spec.batch}, whatever the number of workers"
    if spec.parallel > 1:
        return f"{chosen}; which ones depends on the order in which they end, unless with --batch"
    return chosen


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
        if prefetch:
            checked.prefetch(backend, observer)
        folder = SweepFolder.create(place, spec, Redactor((*secret_values(), *checked.secrets)))
        with folder.locked():
            progress = Progress(spec.total or 0, forecast=checked.forecast)
            source: PointSource
            if spec.sampler == "grid":
                compared = Study(spec, None, lambda: ()) if spec.pruner else None
                keys = enumerate(checked.setup_keys)
                source = GridPoints(spec.space, keys, spec.parallel, compared)
            else:
                study = Study(spec, folder.journal, lambda: ())
                source = SampledPoints(spec, study, (), {})
            on_begin(folder, spec, progress)
            yield from Controller(spec, folder, backend, source, {}, observer, progress).run()


def resume_sweep(
    folder: SweepFolder,
    *,
    observer: Observer,
    failed_only: bool = False,
    change: Callable[[SweepSpec], SweepSpec] | None = None,
    on_begin: OnBegin = lambda _folder, _spec, _progress: None,
) -> Iterator[SweepPoint]:
    """Run the points of a sweep that have no result yet, and yield them as they end.

    Args:
        folder: The sweep.
        observer: Receives the events of the runs.
        failed_only: Whether to run only those that have failed.
        change: Extends the sweep first; recorded once its points were checked.
        on_begin: Is called when all is checked, before the first point starts.

    Raises:
        Error: If another process runs the sweep, or its record had secrets taken out.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked())
        spec = folder.read_spec()
        if Redactor.MARK in str((spec.fixed, spec.axes, spec.options, spec.backend_options)):
            raise Error(
                f"the config or the options of sweep {spec.sweep_id} held a secret, which was "
                "not recorded; start a new sweep with it"
            )
        stack.enter_context(reserved_name(folder.runs_dir, spec.name))
        # relative paths in configs, and modules, are those of the folder it was started in
        with contextlib.suppress(OSError):
            stack.enter_context(contextlib.chdir(spec.working_dir))
        if spec.sampler != "grid" or spec.pruner:
            check_packages(spec.sampler, spec.pruner)
        backend = stack.enter_context(opened(spec))
        if change is not None:
            spec = change(spec)
            if spec.sampler != "grid":
                check_points(spec, backend)
        recorded = folder.recorded_runs()
        progress = Progress(spec.total or 0)
        resume = _resume_grid if spec.sampler == "grid" else _resume_sampled
        source = resume(spec, folder, backend, recorded, progress, failed_only=failed_only)
        if change is not None:
            folder.write_spec(spec, Redactor(secret_values()))
        on_begin(folder, spec, progress)
        yield from Controller(spec, folder, backend, source, recorded, observer, progress).run()


def extended(spec: SweepSpec, axes: Sequence[str], trials: int | None) -> SweepSpec:
    """Return a sweep with more values on its axes, or with more trials.

    Raises:
        ConfigError: If that is not more than it has.
    """
    is_sampled = spec.sampler != "grid"
    if trials is not None and (not is_sampled or trials <= (spec.trials or 0)):
        has = f"has {spec.trials}; write a larger number" if is_sampled else "is a grid"
        raise ConfigError(f"--trials {trials}: the sweep {has}")
    if not axes and trials is None:
        raise ConfigError("nothing to extend: write seed=range:10, or --trials N")
    space = spec.space
    if axes:
        space = space.extended(read_space(axes).axes, is_sampled=is_sampled)
    return dataclasses.replace(spec, axes=space.to_dict(), trials=trials or spec.trials)


def _resume_grid(
    spec: SweepSpec,
    _folder: SweepFolder,
    backend: Backend,
    recorded: Mapping[str, RecordedRun],
    progress: Progress,
    *,
    failed_only: bool,
) -> PointSource:
    todo = []
    for number, overrides in enumerate(spec.space.points()):
        run = recorded.get(point_key(overrides))
        if run is None:
            if not failed_only:
                todo.append(number)
            continue
        point = ended_point(number, overrides, run.outcome(), spec.metric)
        if is_to_run(point, failed_only=failed_only):
            todo.append(number)
        else:
            progress.earlier.append(point)
    keys = check_points(spec, backend, todo).setup_keys if todo else []
    study = None
    if spec.pruner is not None:
        past = [past_trial(spec, number, p) for number, p in enumerate(progress.earlier)]
        study = Study(spec, None, lambda: past)
    return GridPoints(spec.space, zip(todo, keys, strict=True), spec.parallel, study)


def _resume_sampled(
    spec: SweepSpec,
    folder: SweepFolder,
    _backend: Backend,
    recorded: Mapping[str, RecordedRun],
    progress: Progress,
    *,
    failed_only: bool,
) -> PointSource:
    study = Study(spec, folder.journal, lambda: past_trials(spec, recorded))
    again: list[Trial] = []
    scores: dict[str, float | None] = {}
    for trial in study.trials():
        run = recorded.get(str(trial.number))
        if run is None:  # not yet submitted, or another point's result was taken for it
            if trial.is_open:
                again.append(trial)
            continue
        point = ended_point(trial.number, trial.overrides, run.outcome(), spec.metric)
        if is_to_run(point, failed_only=failed_only):
            again.append(trial)
            continue
        progress.earlier.append(point)
        if point.result.status is RunStatus.SUCCESS:
            scores[point_key(point.overrides)] = point.score
        if trial.is_open:
            study.tell(trial.number, point.score, is_pruned=point.is_pruned)
    if failed_only:
        again = [trial for trial in again if str(trial.number) in recorded]
    return SampledPoints(spec, study, again, scores, suggests=not failed_only)


def recorded_points(folder: SweepFolder) -> list[SweepPoint]:
    """Return the points of a sweep that were begun, as their run folders tell of them."""
    spec, found = folder.read_spec(), []
    numbers: dict[str, int] = {}
    if spec.sampler == "grid":
        numbers = {point_key(point): number for number, point in enumerate(spec.space.points())}
    for key, run in folder.recorded_runs().items():
        number = numbers.get(key, run.trial)
        found.append(ended_point(number, run.overrides, run.outcome(), spec.metric))
    return sorted(found, key=lambda point: point.number)


def is_to_run(point: SweepPoint, *, failed_only: bool) -> bool:
    """Return whether a resumption runs a point again that was begun."""
    status = point.result.status
    if failed_only:
        return status is RunStatus.ERROR
    return status is not RunStatus.SUCCESS and not point.is_pruned


def past_trials(spec: SweepSpec, recorded: Mapping[str, RecordedRun]) -> list[PastTrial]:
    """Return what the run folders tell of the points that a sampler has suggested."""
    found = []
    for run in recorded.values():
        point = ended_point(run.trial, run.overrides, run.outcome(), spec.metric)
        found.append(past_trial(spec, run.trial, point))
    return found


def past_trial(spec: SweepSpec, number: int, point: SweepPoint) -> PastTrial:
    """Return what the run folder of a point tells a study."""
    logged = point.result.metrics if spec.pruner_metric is not None else ()
    steps: dict[int, float] = {}
    for entry in logged:
        value = entry.get("metrics", {}).get(spec.pruner_metric)
        if isinstance(value, int | float) and isinstance(entry.get("step"), int):
            steps.setdefault(entry["step"], float(value))
    has_ended = point.result.status.has_ended
    return PastTrial(
        number, point.overrides, point.score, has_ended, tuple(steps.items()), point.is_pruned
    )


def opened(spec: SweepSpec) -> Backend:
    """Return the backend of a sweep."""
    options = dict(spec.backend_options)
    if spec.backend == "local":
        options["max_workers"] = spec.parallel
    return open_backend(spec.backend, **options)


def _default_parallel(backend: str) -> int:
    if backend in ("modal", "slurm"):
        return _PARALLEL_ELSEWHERE
    from ml_experiments.runs.provenance.nvidia import list_gpus

    return max(1, len(list_gpus()))


def _objective(given: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the metric and the direction."""
    both = [name for name in ("maximize", "minimize") if name in given]
    if len(both) == 2:
        raise ConfigError("a sweep compares one result: give either --maximize or --minimize")
    if not both:
        return None, None
    metric = given[both[0]].strip()
    if metric != "results" and not metric.startswith("results."):
        metric = f"results.{metric}"
    return metric, both[0]


def _pruner(given: Mapping[str, Any], direction: str | None) -> str | None:
    """Return the pruner that was asked for."""
    name = given.get("pruner")
    if name is None:
        for option in ("metric", "min_steps"):
            if option in given:
                flag = f"--{option.replace('_', '-')}"
                raise ConfigError(f"{flag} goes with a pruner, such as --pruner median")
        return None
    if name not in PRUNERS:
        raise ConfigError(
            f"{name!r} is not a pruner{suggest(name, PRUNERS)}; known: {', '.join(PRUNERS)}"
        )
    if "metric" not in given or direction is None:
        raise ConfigError(
            f"--pruner {name} compares a metric that the points log, and has to know which way is "
            "better: --metric loss --minimize results.loss"
        )
    check_packages("grid", name)
    return str(name)


def _sampler(given: Mapping[str, Any], space: Space, metric: str | None) -> str:
    """Return the sampler that was asked for, or the one that the other options mean."""
    name, trials = given.get("sampler"), given.get("trials")
    known = ("grid", *SAMPLERS)
    if name is not None and name not in known:
        raise ConfigError(
            f"{name!r} is not a sampler{suggest(name, known)}; known: {', '.join(known)}"
        )
    if name is None:
        name = "grid" if trials is None else ("random" if metric is None else "tpe")
    if name == "grid":
        _check_grid(given, space)
        return "grid"
    if trials is None:
        raise ConfigError(
            f"--sampler {name} suggests points without end; say how many: --trials 50"
        )
    if metric is None and name not in INDEPENDENT:
        raise ConfigError(
            f"--sampler {name} learns from the results; say which: --maximize results.accuracy or "
            "--minimize results.loss"
        )
    check_packages(name, None)
    return str(name)


def _check_grid(given: Mapping[str, Any], space: Space) -> None:
    if space.endless:
        axis = space.endless[0]
        raise ConfigError(
            f"{axis.name} ({axis.describe()}) has no end of values, so there is no grid; let a "
            "sampler suggest points: --sampler random --trials 50, or list the values: "
            f"{axis.name}={axis.low:g},{axis.high:g}"
        )
    for name, flag in (("trials", "--trials"), ("batch", "--batch")):
        if name in given:
            raise ConfigError(
                f"{flag} goes with a sampler, such as --sampler random; a grid has its own points"
            )
