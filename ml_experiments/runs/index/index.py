"""Keeps the index of a runs folder up to date, and reads rows from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.database import Database, writing
from ml_experiments.runs.index.names import refresh_names
from ml_experiments.runs.index.rows import RunRow, has_result, read_row, read_stamp
from ml_experiments.runs.index.tables import (
    Selection,
    remove_runs,
    select_entries,
    select_names,
    select_undated,
    write_row,
)

Progress = Callable[[int, int], object]

_BATCH = 500
# a folder that changes faster than it is read is shown as it was
_MAX_LOOKS = 3
_GOES_ON = ("pending", "running")


class RunIndex:
    """The index of one runs folder. Every method raises `RunFolderError` if it is not readable.

    Args:
        runs_dir: The folder.
        index_dir: Where index files are.
        on_progress: Is called, with how many of how many, while many folders are read.
    """

    def __init__(
        self, runs_dir: Path, index_dir: Path, on_progress: Progress = lambda _done, _total: None
    ) -> None:
        self._runs_dir = runs_dir
        self._database = Database(runs_dir, index_dir)
        self._on_progress = on_progress

    def paths(self) -> tuple[str, ...]:
        """Return the paths of all values that some run has, such as `config.lr`."""

        def read(connection: sqlite3.Connection) -> tuple[str, ...]:
            self._refresh_all(connection)
            return tuple(path for (path,) in connection.execute("SELECT path FROM paths"))

        return self._database.use(read)

    def values(self, column: str) -> list[str]:
        """Return the different values of a column of strings."""

        def read(connection: sqlite3.Connection) -> list[str]:
            query = f"SELECT DISTINCT {column} FROM runs WHERE {column} IS NOT NULL"
            return [value for (value,) in connection.execute(query)]

        return self._database.use(read)

    def rows(self, selection: Selection, limit: int | None = None) -> list[RunRow]:
        """Return rows; each is what its folder says now."""
        return self._database.use(lambda connection: self._rows(connection, selection, limit))

    def count(self, selection: Selection) -> int:
        """Return how many rows a selection has."""

        def read(connection: sqlite3.Connection) -> int:
            self._refresh(connection, selection)
            query = f"SELECT count(*) FROM runs WHERE {selection.condition}"
            (count,) = connection.execute(query, selection.parameters).fetchone()
            return int(count)

        return self._database.use(read)

    def names(self, prefix: str, limit: int | None = None, *, is_listed: bool = False) -> list[str]:
        """Return the newest names of run folders that begin with a prefix.

        Args:
            prefix: How they begin.
            limit: The most to return; None for all.
            is_listed: Whether the folder has to be listed, though nothing seems to have changed.
        """

        def read(connection: sqlite3.Connection) -> list[str]:
            refresh_names(connection, self._runs_dir, is_listed=is_listed)
            if not prefix:  # only the order depends on them
                self._read(connection, select_undated(connection))
            return select_names(connection, prefix, limit)

        return self._database.use(read)

    def _rows(
        self, connection: sqlite3.Connection, selection: Selection, limit: int | None
    ) -> list[RunRow]:
        self._refresh(connection, selection)
        for look in range(_MAX_LOOKS):
            entries = select_entries(connection, selection, limit)
            stale = [
                entry.row.run_id
                for entry in entries
                if (look == 0 and not entry.is_settled)
                or entry.stamp != read_stamp(self._runs_dir / entry.row.run_id)
            ]
            if not stale:
                break
            self._read(connection, stale)
        return [entry.row for entry in entries]

    def _refresh(self, connection: sqlite3.Connection, selection: Selection) -> None:
        if selection.needs_all:
            self._refresh_all(connection)
        else:
            refresh_names(connection, self._runs_dir)
            self._read(connection, select_undated(connection))

    def _refresh_all(self, connection: sqlite3.Connection) -> None:
        refresh_names(connection, self._runs_dir)
        unsettled = connection.execute(
            "SELECT run_id, stamp, status FROM runs WHERE is_settled = 0"
        ).fetchall()
        stale = [
            name
            for name, stamp, status in unsettled
            if stamp is None or status in _GOES_ON or stamp != read_stamp(self._runs_dir / name)
        ]
        self._read(connection, stale)
        settled = {name for name, stamp, _ in unsettled if stamp and has_result(stamp)} - {*stale}
        if settled:
            with writing(connection):
                connection.executemany(
                    "UPDATE runs SET is_settled = 1 WHERE run_id = ? AND problem IS NULL",
                    [(name,) for name in settled],
                )

    def _read(self, connection: sqlite3.Connection, names: Sequence[str]) -> None:
        """Read run folders into the index; what is done is kept if the process is killed."""
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            read = [self._read_one(name) for name in batch]
            with writing(connection):
                for row, stamp, is_settled in read:
                    if row.problem and not (self._runs_dir / row.run_id).is_dir():
                        remove_runs(connection, [row.run_id])
                    else:
                        write_row(connection, row, stamp, is_settled)
            self._on_progress(min(start + _BATCH, len(names)), len(names))

    def _read_one(self, name: str) -> tuple[RunRow, str, bool]:
        path = self._runs_dir / name
        stamp = read_stamp(path)  # before: what changes meanwhile is read again
        row = read_row(RunFolder(path))
        return row, stamp, has_result(stamp) and not row.problem
