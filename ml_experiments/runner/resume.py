"""Takes up runs that are there: again from their checkpoints, or as they go on elsewhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.pools import Pool
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.experiment.by_value import FILE_NAME
from ml_experiments.experiment.reference import parse_experiment_path
from ml_experiments.runner.attempts import prepare_recorded, reserve_again, submit_again
from ml_experiments.runner.budget.reserving import (
    Budget,
    describe_limit,
    give_back_unstarted,
    release,
    settle_at_end,
)
from ml_experiments.runner.display.observers import guarded
from ml_experiments.runner.retry import with_retries
from ml_experiments.runner.run import keep_alive
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec


def resume_run(
    folder: RunFolder,
    *,
    backend: Backend,
    observer: Observer | None = None,
    force: bool = False,
    max_cost: float | None = None,
    budget: Budget | None = None,
    choose_pool: Callable[[str | None], Pool | None] = lambda _setup_key: None,
    place: tuple[str, tuple[str, ...]] | None = None,
    approve: Callable[[PreparedRun], object] = lambda _run: None,
) -> RunHandle:
    """Run a run again that did not succeed, in its own folder, from its checkpoints.

    Everything that can be checked is checked first; until then, nothing of the run is changed.

    Args:
        folder: The run folder. Where the project has been moved, or the folder brought from
            another machine, the experiment is looked for beside it, and in the current folder.
        backend: The backend that it ran on.
        observer: Receives live events.
        force: Resume it even if it seems to go on.
        max_cost: Replaces the cap that it has, in US dollars; what it has cost so far counts.
        budget: What it shares with other runs, instead of a cap of its own.
        choose_pool: Returns the containers that it shares with others, by its set-up key.
        place: The class path of the experiment and the folders to import it from, where these
            are known better than from the run's record.
        approve: Is called with the prepared run before anything is submitted; it may raise.

    Raises:
        Error: If it succeeded, is still going on, or its record had secrets taken out.
    """
    folder = RunFolder(folder.path.expanduser().resolve())
    lock = RunLock.take(folder)
    try:
        backend.recover(folder, guarded(observer))
        outcome, spec = folder.outcome(), folder.read_spec()
        _check_status(outcome, spec, force=force)
        if max_cost is not None:
            spec = dataclasses.replace(spec, max_cost=max_cost)
        asked = prepare_recorded(relocated(spec, folder, place), backend)
        pool = choose_pool(asked.setup_key)
        asked = dataclasses.replace(asked, budget=budget, pool=pool)
        if asked.forecast is not None:
            give_back_unstarted(folder)
        approve(asked)
        earlier = outcome.attempts or folder.read_manifest().attempts(outcome)
        prepared = reserve_again(asked, folder, earlier, backend)
        limit = describe_limit(asked, prepared)
        if limit is not None:
            guarded(observer).notice(spec, limit)

        def submit(one_run: Observer) -> RunHandle:
            attempt = submit_again(prepared, folder, outcome, backend, one_run)
            settle_at_end(attempt, prepared.reservation)
            return attempt

        try:
            handle = with_retries(submit, prepared, backend, guarded(observer))
        except BaseException:
            release(prepared.reservation)
            raise
        keep_alive(handle)
    except BaseException:
        lock.release()
        raise
    handle.when_ended(lock.release)
    return handle


def _check_status(outcome: RunResult, spec: RunSpec, *, force: bool) -> None:
    if outcome.status is RunStatus.SUCCESS:
        raise Error(f"run {outcome.run_id} has succeeded; there's nothing to resume")
    if not outcome.status.has_ended and not force:
        way = f"ml-experiments runs resume --force {outcome.run_id}"
        text = f"run {outcome.run_id} is {outcome.status}; if you know that it isn't: {way}"
        if spec.backend in ("modal", "slurm"):
            text += f". Follow it with: ml-experiments runs follow {outcome.run_id}"
        raise Error(text)


def relocated(
    spec: RunSpec, folder: RunFolder, place: tuple[str, tuple[str, ...]] | None = None
) -> RunSpec:
    """Return a spec whose experiment is found, though its project's folder has moved.

    What it was imported from is looked for at the same relative place below the current folder,
    and below those that hold the run folder, with as many of its parent folders as there are,
    unless the place is known; see `resume_run`.
    """
    location, _, name = spec.experiment.rpartition(":")
    if Path(location).name == FILE_NAME:  # of a notebook
        paths = (str(folder.path), *spec.import_paths[1:])
        experiment = f"{folder.path / FILE_NAME}:{name}"
        return dataclasses.replace(spec, experiment=experiment, import_paths=paths)
    if place is not None:
        return dataclasses.replace(spec, experiment=place[0], import_paths=place[1])
    if is_importable(spec.experiment, spec.import_paths):
        return spec
    folders = map(Path, spec.import_paths)
    old_roots = sorted({root for path in folders for root in (path, *path.parents)})
    for root, old_root in itertools.product((Path.cwd(), *folder.path.parents), old_roots):
        moved = tuple(_moved(path, old_root, root) for path in spec.import_paths)
        experiment = spec.experiment
        if location.endswith(".py"):
            experiment = f"{_moved(location, old_root, root)}:{name}"
        if is_importable(experiment, moved):
            return dataclasses.replace(spec, experiment=experiment, import_paths=moved)
    return spec


def is_importable(experiment: str, import_paths: Iterable[str]) -> bool:
    """Return whether the file of an experiment is where it would be imported from."""
    location = experiment.rpartition(":")[0]
    if location.endswith(".py"):
        return Path(location).is_file()
    module = Path(*parse_experiment_path(experiment).module.split("."))
    return any(
        Path(path, file).exists()
        for path in import_paths
        for file in (module.with_suffix(".py"), module / "__init__.py")
    )


def _moved(path: str, old_root: Path, root: Path) -> str:
    try:
        return str(root / Path(path).relative_to(old_root))
    except ValueError:
        return path


def attach_run(
    folder: RunFolder, *, backend: Backend, observer: Observer | None = None
) -> RunHandle:
    """Take up a run again that has outlived the client that submitted it.

    Raises:
        Error: If it has ended already, or the backend's runs end with their client.
    """
    outcome = folder.outcome()
    if outcome.status.has_ended:
        raise Error(f"run {outcome.run_id} has ended with status {outcome.status}")
    return backend.attach(folder, guarded(observer))
