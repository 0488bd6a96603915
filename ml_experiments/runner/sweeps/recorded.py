"""What the run folders of a sweep tell of it: which points have ended, and which are to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_experiments.backends.base import Backend
from ml_experiments.runner.sweeps.checking import Checked, check_points
from ml_experiments.runner.sweeps.controller import Progress
from ml_experiments.runner.sweeps.folder import RecordedRun, SweepFolder, SweepSpec
from ml_experiments.runner.sweeps.points import SweepPoint, ended_point, logged_values
from ml_experiments.runner.sweeps.rounds import in_rounds
from ml_experiments.runner.sweeps.search_space.space import point_key
from ml_experiments.runner.sweeps.sources import GridPoints, PointSource, SampledPoints
from ml_experiments.runner.sweeps.study import (
    PastTrial,
    Study,
    Trial,
    finished_trials,
)
from ml_experiments.runs.result import RunStatus


def resume_grid(
    spec: SweepSpec,
    folder: SweepFolder,
    backend: Backend,
    recorded: Mapping[str, RecordedRun],
    progress: Progress,
    *,
    failed_only: bool,
) -> tuple[PointSource, Checked | None]:
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
    if not todo:
        return GridPoints(spec, ()), None
    checked = check_points(spec, backend, todo)
    _check_room(checked, spec, folder, backend, recorded)
    progress.to_run, progress.forecast = len(todo), checked.forecast
    study = None
    if spec.has_optunas_pruner:
        past = [past_trial(spec, number, p) for number, p in enumerate(progress.earlier)]
        study = Study(spec, None, lambda: past)
    keyed = zip(todo, checked.setup_keys, strict=True)
    source = GridPoints(spec, keyed, study)
    return in_rounds(source, spec, len(todo), checked.forecast, progress.earlier), checked


def resume_sampled(
    spec: SweepSpec,
    folder: SweepFolder,
    backend: Backend,
    recorded: Mapping[str, RecordedRun],
    progress: Progress,
    *,
    failed_only: bool,
) -> tuple[PointSource, Checked | None]:
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
        scores[point_key(point.overrides)] = point.score
        if trial.is_open:
            study.tell(trial.number, point.score, is_pruned=point.is_pruned)
    repeated = study.count - len(progress.earlier) - len(again)
    if failed_only:
        again = [trial for trial in again if str(trial.number) in recorded]
    source = SampledPoints(spec, study, again, scores, suggests=not failed_only)
    source.repeated = repeated
    new = 0 if failed_only else (spec.trials or 0) - study.count
    progress.to_run = len(again) + max(0, new)
    if not progress.to_run:
        return source, None
    checked = check_points(spec, backend)
    _check_room(checked, spec, folder, backend, recorded)
    one = checked.first.forecast
    progress.forecast = None if one is None else one.for_runs(progress.to_run, spec.max_cost)
    rounds = in_rounds(source, spec, progress.to_run, progress.forecast, progress.earlier)
    return rounds, checked


def _check_room(
    checked: Checked,
    spec: SweepSpec,
    folder: SweepFolder,
    backend: Backend,
    recorded: Mapping[str, RecordedRun],
) -> None:
    """Make sure that the caps have room for a point, unless something can go on without.

    Raises:
        BudgetError: If not, or it can't be known.
    """
    # money that is divided in rounds may be at its end, and so the sweep
    if spec.is_halved_by_money:
        return
    # a run that goes on elsewhere is followed, and has its reservation
    if backend.outlives_client and not all(r.outcome().status.has_ended for r in recorded.values()):
        return
    checked.check_room(spec, backend, folder.runs_dir)


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


def count_repeated(folder: SweepFolder, points: Sequence[SweepPoint]) -> int:
    """Return how many points were suggested again, and so did not run again.

    Args:
        folder: The sweep.
        points: Those of it that have a run.
    """
    if folder.read_spec().sampler == "grid":
        return 0
    return len(finished_trials(folder.journal) - {point.number for point in points})


def is_to_run(point: SweepPoint, *, failed_only: bool) -> bool:
    """Return whether a resumption runs a point again that was begun, or follows it to its end."""
    status = point.result.status
    if failed_only:
        return status is RunStatus.ERROR or not status.has_ended
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
    metric = spec.pruner_metric
    steps = {} if metric is None else logged_values(point.result, metric)
    has_ended = point.result.status.has_ended
    return PastTrial(
        number, point.overrides, point.score, has_ended, tuple(steps.items()), point.is_pruned
    )
