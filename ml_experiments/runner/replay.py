"""Runs an old run again: the same config, seed and options, and its code from git."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.attempts import prepare_recorded
from ml_experiments.runner.resume import is_importable, relocated
from ml_experiments.runner.run import submit_with_code
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.labels import read_labels
from ml_experiments.runs.provenance.checkout import CodeNotFoundError, CodeStore, root_of
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.spec import PreparedRun, RunSpec, new_run_id
from ml_experiments.settings import working_dir

# of a runs folder: a folder for each git tree that was replayed
CODE_FOLDER = ".code"
_WITHOUT = "--current-code runs it with the code as it is now"


def replay_run(
    folder: RunFolder,
    *,
    backend: Backend,
    observer: Observer | None = None,
    uses_current_code: bool = False,
    approve: Callable[[PreparedRun], object] = lambda _run: None,
) -> RunHandle:
    """Run an old run again, as a new run beside it, without a name, with the tag `replay_of`.

    Where the run recorded a git commit, its code and the changes that were not committed are
    brought back into a folder of their own, and imported from there. The working folder, the
    packages and the data are those of now.

    Args:
        folder: The folder of the old run.
        backend: The backend that it ran on.
        observer: Receives live events.
        uses_current_code: Whether to import the code as it is now.
        approve: Is called with the prepared run before anything is submitted; it may raise.

    Raises:
        Error: If the code can't be brought back, or the run could not work any more.
    """
    folder = RunFolder(folder.path.expanduser().resolve())
    runs_dir = folder.path.parent
    spec, code = folder.read_spec(), folder.read_manifest().code
    if uses_current_code:
        spec, code = relocated(spec, folder), describe_code(working_dir())
    elif code.get("commit"):
        spec = _with_old_code(spec, code, runs_dir)
    else:
        spec = relocated(spec, folder)
    labels = read_labels(folder)
    again = dataclasses.replace(
        spec,
        run_id=new_run_id(),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        name=None,  # one that two runs have names neither
        tags={**labels.tags, "replay_of": folder.path.name},
    )
    prepared = prepare_recorded(again, backend)
    approve(prepared)
    return submit_with_code(
        prepared,
        dict(code),
        backend=backend,
        runs_dir=runs_dir,
        observer=observer,
    )


def _with_old_code(spec: RunSpec, code: Mapping[str, Any], runs_dir: Path) -> RunSpec:
    """Return a spec whose experiment is imported from its old code.

    Raises:
        Error: If that can't be brought back, or the experiment was not in it.
    """
    root = root_of(code)
    assert root is not None  # wherever there is a commit
    try:
        with CodeStore.open(root) as store:
            tree = store.tree(code)
            place = runs_dir / CODE_FOLDER / tree[:16]
            if not place.is_dir():
                store.export(tree, place)
    except CodeNotFoundError as e:
        raise Error(f"the code of run {spec.run_id} can't be brought back: {e}; {_WITHOUT}") from e
    location, _, name = spec.experiment.rpartition(":")
    file = _mapped(location, root, place, runs_dir) if location.endswith(".py") else location
    experiment = f"{file}:{name}" if location else spec.experiment
    paths = tuple(_mapped(path, root, place, runs_dir) for path in spec.import_paths)
    # one of an installed package is in neither place
    was_there = is_importable(spec.experiment, spec.import_paths)
    if was_there and not is_importable(experiment, paths):
        raise Error(
            f"{spec.experiment} is not in commit {str(code['commit'])[:12]}, nor in the recorded "
            f"changes: git did not track its file; {_WITHOUT}"
        )
    return dataclasses.replace(spec, experiment=experiment, import_paths=paths)


def _mapped(path: str, root: Path, place: Path, runs_dir: Path) -> str:
    """Return where a path of the repository is in a folder that holds its old code."""
    # run folders keep experiments of notebooks, and are not part of the code
    if Path(path).is_relative_to(root) and not Path(path).is_relative_to(runs_dir):
        return str(place / Path(path).relative_to(root))
    return path
