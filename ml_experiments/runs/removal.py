"""Removing runs: a plan that can be looked at, and its execution."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import LOST_AFTER_S, silent_s
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.index.names import is_run_folder
from ml_experiments.runs.lock import RunLock

# a folder that is being removed has a name that is no run's
_REMOVED = ".removed-"


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be removed.

    Attributes:
        size_bytes: What its folder holds, without what links in it lead to.
        is_on_modal: Whether it has, or may have, a folder on the volume of runs too.
    """

    run_id: str
    size_bytes: int
    is_on_modal: bool


@dataclass(frozen=True)
class RemovalPlan:
    """What would be removed, and what would be kept though it was asked for, with the reason."""

    runs_dir: Path
    runs: tuple[PlannedRun, ...]
    kept: tuple[tuple[str, str], ...]

    @property
    def size_bytes(self) -> int:
        """What all folders hold."""
        return sum(run.size_bytes for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "size_bytes": self.size_bytes,
            "kept": [{"run_id": run_id, "reason": reason} for run_id, reason in self.kept],
        }


def plan_removal(runs_dir: Path, run_ids: Iterable[str]) -> RemovalPlan:
    """Return what removing runs would remove; nothing is changed.

    A run that goes on is kept, and so is what is no folder of a run, such as a link.

    Args:
        runs_dir: The runs folder.
        run_ids: Names of folders in it.
    """
    runs, kept = [], []
    for run_id in dict.fromkeys(run_ids):
        reason = _reason_to_keep(runs_dir, run_id)
        if reason is not None:
            kept.append((run_id, reason))
            continue
        path = runs_dir / run_id
        runs.append(PlannedRun(run_id, _size_bytes(path), _is_on_modal(path)))
    return RemovalPlan(runs_dir, tuple(runs), tuple(kept))


def remove_run(runs_dir: Path, run_id: str) -> None:
    """Remove the folder of a run, which disappears at once; links in it are not followed.

    Raises:
        RunFolderError: If it goes on by now, is no folder of a run, or can't be removed.
    """
    reason = _reason_to_keep(runs_dir, run_id)
    if reason is not None:
        raise RunFolderError(reason)
    path = runs_dir / run_id
    lock = RunLock.take(RunFolder(path))  # nobody resumes it meanwhile
    aside = runs_dir / f"{_REMOVED}{run_id}-{secrets.token_hex(4)}"
    try:
        with recorded(runs_dir, run_id, is_listed=True):
            path.rename(aside)
    except OSError as e:
        raise RunFolderError(f"{path} can't be removed: {e.strerror}") from e
    finally:
        lock.release()
    _delete(aside)


def remove_leftovers(runs_dir: Path) -> None:
    """Remove what a removal has left that was killed, or that could not delete everything."""
    with contextlib.suppress(OSError), os.scandir(runs_dir) as entries:
        left = [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(_REMOVED) and entry.is_dir(follow_symlinks=False)
        ]
        for path in left:
            with contextlib.suppress(RunFolderError):
                _delete(path)


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as e:
        raise RunFolderError(
            f"{e.filename or path} can't be deleted: {e.strerror}; the rest of the run is there"
        ) from e


def _reason_to_keep(runs_dir: Path, run_id: str) -> str | None:
    path = runs_dir / run_id
    if "/" in run_id or not is_run_folder(path):
        return "it is not the folder of a run"
    try:
        status = RunFolder(path).outcome().status
    except RunFolderError as e:
        if silent_s(path) < LOST_AFTER_S:
            return f"it may go on: {e}"
        return None
    if not status.has_ended:
        return f"it is {status}"
    return None


def _is_on_modal(path: Path) -> bool:
    try:
        return RunFolder(path).read_manifest().is_on_modal
    except RunFolderError:
        return False


def _size_bytes(path: Path) -> int:
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(folder) / name).lstat().st_size
    return size
