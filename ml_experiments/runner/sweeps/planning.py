"""What is asked of a sweep, checked as far as the experiment need not be known."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from ml_experiments.config.options import read_options
from ml_experiments.errors import ConfigError, suggest
from ml_experiments.runner.options import RunOptions, as_recorded
from ml_experiments.runner.prepare import locate_experiment
from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.options import SweepOptions
from ml_experiments.runner.sweeps.search_space.space import Space
from ml_experiments.runner.sweeps.study import (
    INDEPENDENT,
    PRUNERS,
    SAMPLERS,
    check_packages,
    learns,
)
from ml_experiments.runs.spec import new_run_id
from ml_experiments.settings import working_dir

_PARALLEL_ELSEWHERE = 8
_DRAWN_SEEDS = 2**31


class SweepCall(RunOptions, SweepOptions, total=False):
    """What `sweep` takes: the options of runs, and those of sweeps."""


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
    if max_cost is not None:
        check_cap(backend, runs)
    spec = SweepSpec(
        sweep_id=new_run_id(),
        experiment=location,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        axes=space.to_dict(),
        fixed=tuple(fixed),
        backend=backend,
        backend_options=as_recorded(backend_options),
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
    if spec.is_halved_by_money:
        _check_halving_by_money(given, sampler)
    elif spec.pruner is not None:
        check_packages("grid", spec.pruner)
    return spec


def check_cap(backend: str, options: Mapping[str, Any]) -> None:
    """Make sure that the points of a sweep with these options can cost something.

    Raises:
        ConfigError: If not.
    """
    if backend != "modal" and not options.get("escalate_to"):
        raise ConfigError("max_cost caps what points cost on Modal; here they cost nothing")


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
    if not all(part.strip() for part in metric.split(".")):
        raise ConfigError(f"--{both[0]} {metric!r} names no result; write it as in results.loss")
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
    return str(name)


def _check_halving_by_money(given: Mapping[str, Any], sampler: str) -> None:
    if "min_steps" in given:
        raise ConfigError(
            "with --max-cost, halving goes by money and not by steps: leave --min-steps out"
        )
    if learns(sampler):
        raise ConfigError(
            f"with --max-cost, halving gives points their money in parts, from which {sampler} "
            "can't learn; use a grid, or --sampler random or qmc"
        )


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
    if metric is None and learns(name):
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
