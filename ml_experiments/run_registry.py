"""An SQLite index over run folders: rebuilt from them whenever it's missing, broken or stale.

The run folders are the truth. Nothing writes to the index but a reader that first brings it up
to date: a folder is read again when one of its files changed or its run had not ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError, RunNotFoundError
from ml_experiments.run_folder import RunFolder
from ml_experiments.runs import RunStatus

INDEX_NAME = ".registry.sqlite3"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, changed_ns INTEGER NOT NULL, is_final INTEGER NOT NULL,
    row TEXT NOT NULL
) WITHOUT ROWID;
"""
_FINAL = (RunStatus.SUCCESS, RunStatus.ERROR, RunStatus.CANCELLED)


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

    def rows(self) -> list[RunRow]:
        """Return every run, the newest first; a folder that can't be read has a `problem`."""
        if not self._runs_dir.is_dir():
            return []
        try:
            return self._rows()
        except (sqlite3.DatabaseError, TypeError, ValueError):  # broken: nothing is lost
            for suffix in ("", "-wal", "-shm"):
                (self._runs_dir / f"{INDEX_NAME}{suffix}").unlink(missing_ok=True)
            return self._rows()

    def find(self, reference: str) -> RunFolder:
        """Return the run folder of an id, the beginning of one, or `last`.

        Raises:
            RunNotFoundError: If none or several match.
        """
        names = sorted(name for name, _ in self._folders())
        if not names:
            raise RunNotFoundError(f"there are no runs in {self._runs_dir}")
        if reference == "last":
            return RunFolder(self._runs_dir / names[-1])
        matches = [name for name in names if name.startswith(reference)] if reference else []
        if reference in matches or len(matches) == 1:
            return RunFolder(self._runs_dir / (reference if reference in matches else matches[0]))
        if not matches:
            raise RunNotFoundError(
                f"no run in {self._runs_dir} has an id that starts with {reference!r}; "
                "`ml-experiments runs list` shows them"
            )
        raise RunNotFoundError(
            f"{reference!r} matches {len(matches)} runs, among them {', '.join(matches[-3:])}; "
            "write more of it"
        )

    def _rows(self) -> list[RunRow]:
        folders = dict(self._folders())
        with self._open() as index:
            known = {
                run_id: (changed_ns, bool(is_final))
                for run_id, changed_ns, is_final in index.execute(
                    "SELECT run_id, changed_ns, is_final FROM runs"
                )
            }
            stale = [
                run_id
                for run_id, changed_ns in folders.items()
                if known.get(run_id) != (changed_ns, True)
            ]
            index.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)",
                [self._read(run_id, folders[run_id]) for run_id in stale],
            )
            index.executemany(
                "DELETE FROM runs WHERE run_id = ?", [(gone,) for gone in known.keys() - folders]
            )
            texts = index.execute("SELECT row FROM runs ORDER BY run_id DESC").fetchall()
        return [RunRow(**json.loads(text)) for (text,) in texts]

    def _read(self, run_id: str, changed_ns: int) -> tuple[str, int, bool, str]:
        try:
            row, is_final = _read_row(RunFolder(self._runs_dir / run_id))
        except RunFolderError as e:
            row, is_final = RunRow(run_id, problem=str(e)), False
        return run_id, changed_ns, is_final, json.dumps(row.to_dict())

    def _folders(self) -> Iterator[tuple[str, int]]:
        """Yield each run folder's name and when it, its spec or its result last changed."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._runs_dir) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    folder = Path(entry.path)
                    files = (folder, folder / "result.json", folder / "spec.json")
                    yield entry.name, max(map(_changed_ns, files))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._runs_dir / INDEX_NAME, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone() != (_SCHEMA_VERSION,):
                connection.execute("DROP TABLE IF EXISTS runs")
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()


def _read_row(folder: RunFolder) -> tuple[RunRow, bool]:
    spec, outcome = folder.read_spec(), folder.outcome()
    row = RunRow(
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
    return row, outcome.status in _FINAL and folder.result_file.exists()


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
