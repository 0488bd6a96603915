"""Lists and finds run folders, which are the truth: there is no index beside them."""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError, RunNotFoundError, suggest
from ml_experiments.runs.folder import RunFolder

_MAX_SUGGESTED = 100
_RUN_ID = re.compile(r"\d{8}-\d{6}-\d{3}[0-9a-f]{4}")  # what `new_run_id` returns


@dataclass(frozen=True)
class RunRow:
    """One run in a list.

    Attributes:
        seconds: How long it took; None until it has ended.
        error: `kind: message`, when it ended in an error.
        problem: Why the folder can't be read; the other fields are then unknown.
    """

    run_id: str
    status: str | None = None
    experiment: str | None = None
    name: str | None = None
    backend: str | None = None
    gpu: str | None = None
    created_at: str | None = None
    seconds: float | None = None
    error: str | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return asdict(self)


class RunRegistry:
    """Lists and finds the runs below one folder."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir

    def count(self) -> int:
        """Return how many runs there are."""
        return sum(1 for _ in self._names())

    def rows(self, limit: int | None = None) -> list[RunRow]:
        """Return the newest runs, the newest first; a folder that can't be read has a `problem`.

        Args:
            limit: How many to read; None for all.
        """
        return [_read_row(RunFolder(self._runs_dir / name)) for name in self._newest(limit)]

    def find(self, reference: str) -> RunFolder:
        """Return the run folder of an id, the beginning of one, or `last`.

        Raises:
            RunNotFoundError: If none or several match.
        """
        names = self._newest()
        if not names:
            raise RunNotFoundError(f"there are no runs in {self._runs_dir}")
        if reference == "last":
            return RunFolder(self._runs_dir / names[0])
        matches = [name for name in names if name.startswith(reference)] if reference else []
        if reference in matches or len(matches) == 1:
            return RunFolder(self._runs_dir / (reference if reference in matches else matches[0]))
        if not matches:
            hint = suggest(reference, ("last", *names[:_MAX_SUGGESTED]))
            raise RunNotFoundError(
                f"no run in {self._runs_dir} has an id that starts with {reference!r}{hint}; "
                "`ml-experiments runs list` shows them"
            )
        raise RunNotFoundError(
            f"{reference!r} matches {len(matches)} runs, among them {', '.join(matches[:3])}; "
            "write more of it"
        )

    def _newest(self, limit: int | None = None) -> list[str]:
        names = self._names()
        return (
            sorted(names, key=_age, reverse=True)
            if limit is None
            else heapq.nlargest(limit, names, key=_age)
        )

    def _names(self) -> Iterator[str]:
        try:
            with os.scandir(self._runs_dir) as entries:
                yield from (entry.name for entry in entries if _is_run_folder(entry))
        except FileNotFoundError:
            return
        except OSError as e:
            raise RunFolderError(
                f"the runs folder {self._runs_dir} is not readable: {e.strerror}; "
                "ML_EXPERIMENTS_RUNS_DIR names another"
            ) from e


def _is_run_folder(entry: os.DirEntry[str]) -> bool:
    # other tools keep folders here too, as TensorBoard does
    if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
        return False
    if _RUN_ID.fullmatch(entry.name):
        return True
    # a name that isn't Unicode can't be printed
    return entry.name.isprintable() and Path(entry.path, "spec.json").exists()


def _age(name: str) -> tuple[bool, str]:
    """Return what run folders are sorted by: the time in their id; renamed ones count as old."""
    return bool(_RUN_ID.fullmatch(name)), name


def _read_row(folder: RunFolder) -> RunRow:
    try:
        spec, outcome = folder.read_spec(), folder.outcome()
    except RunFolderError as e:
        return RunRow(folder.path.name, problem=str(e))
    return RunRow(
        run_id=folder.path.name,
        status=str(outcome.status),
        experiment=spec.experiment,
        name=spec.name,
        backend=spec.backend,
        gpu=spec.gpu,
        created_at=spec.created_at,
        seconds=outcome.timings.get("total_s"),
        error=f"{outcome.error.kind}: {outcome.error.message}" if outcome.error else None,
    )
