"""An SQLite index over run folders: rebuilt from them whenever it's missing, broken or stale.

The run folders are the truth. Nothing writes to the index but a reader that first brings it up
to date: a folder is read again when one of its files changed or its run had not ended. Where the
index can't be written (a full disk, a read-only folder), the runs are listed without one.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError, RunNotFoundError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus

INDEX_NAME = ".registry.sqlite3"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, changed_ns INTEGER NOT NULL, is_final INTEGER NOT NULL,
    row TEXT NOT NULL
) WITHOUT ROWID;
"""
_LONGEST_WAIT_S = 5.0  # for another reader that writes; without the index it works too
# an index that isn't one, is damaged, or holds other tables than its version says
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
_RUN_ID = re.compile(r"\d{8}-\d{6}-\d{3}[0-9a-f]{4}")  # what runs.new_run_id returns
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
        index = str(self._runs_dir / INDEX_NAME)
        try:
            return self._rows(index)
        except (sqlite3.Error, TypeError, ValueError) as e:
            # when it's only full, read-only or locked, the index is as good as before
            if not _is_broken(e) or not self._delete_index():
                return self._rows(":memory:")
        try:
            return self._rows(index)
        except sqlite3.Error:
            return self._rows(":memory:")

    def find(self, reference: str) -> RunFolder:
        """Return the run folder of an id, the beginning of one, or `last`.

        Raises:
            RunNotFoundError: If none or several match.
        """
        names = _newest_first(name for name, _ in self._folders())
        if not names:
            raise RunNotFoundError(f"there are no runs in {self._runs_dir}")
        if reference == "last":
            return RunFolder(self._runs_dir / names[0])
        matches = [name for name in names if name.startswith(reference)] if reference else []
        if reference in matches or len(matches) == 1:
            return RunFolder(self._runs_dir / (reference if reference in matches else matches[0]))
        if not matches:
            raise RunNotFoundError(
                f"no run in {self._runs_dir} has an id that starts with {reference!r}; "
                "`ml-experiments runs list` shows them"
            )
        raise RunNotFoundError(
            f"{reference!r} matches {len(matches)} runs, among them {', '.join(matches[:3])}; "
            "write more of it"
        )

    def _rows(self, index_file: str) -> list[RunRow]:
        folders = dict(self._folders())
        with _open_index(index_file) as index:
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
            rows = {
                run_id: RunRow(**json.loads(text))
                for run_id, text in index.execute("SELECT run_id, row FROM runs")
            }
        return [rows[run_id] for run_id in _newest_first(rows)]

    def _read(self, run_id: str, changed_ns: int) -> tuple[str, int, bool, str]:
        try:
            row, is_final = _read_row(RunFolder(self._runs_dir / run_id))
        except RunFolderError as e:
            row, is_final = RunRow(run_id, problem=str(e)), False
        return run_id, changed_ns, is_final, json.dumps(row.to_dict())

    def _folders(self) -> Iterator[tuple[str, int]]:
        """Yield each run folder's name and when it, its spec or its result last changed."""
        try:
            with os.scandir(self._runs_dir) as entries:
                for entry in entries:
                    if _is_run_folder(entry):
                        folder = Path(entry.path)
                        files = (folder, folder / "result.json", folder / "spec.json")
                        yield entry.name, max(map(_changed_ns, files))
        except FileNotFoundError:
            return
        except OSError as e:
            raise RunFolderError(
                f"the runs folder {self._runs_dir} is not readable: {e.strerror}; "
                "ML_EXPERIMENTS_RUNS_DIR names another"
            ) from e

    def _delete_index(self) -> bool:
        try:
            for suffix in ("", "-wal", "-shm"):
                (self._runs_dir / f"{INDEX_NAME}{suffix}").unlink(missing_ok=True)
        except OSError:
            return False
        return True


def _is_run_folder(entry: os.DirEntry[str]) -> bool:
    # other tools keep folders here too, as TensorBoard does
    if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
        return False
    if _RUN_ID.fullmatch(entry.name):
        return True
    # a name that isn't Unicode is no text for the index
    return entry.name.isprintable() and Path(entry.path, "spec.json").exists()


def _newest_first(names: Iterable[str]) -> list[str]:
    """Sort by the time in run ids; folders that somebody has renamed come last."""
    return sorted(names, key=lambda name: (bool(_RUN_ID.fullmatch(name)), name), reverse=True)


def _is_broken(error: Exception) -> bool:
    if not isinstance(error, sqlite3.Error):
        return True  # a row of the index is not one
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN


@contextmanager
def _open_index(file: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(file, timeout=_LONGEST_WAIT_S, isolation_level=None)
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
