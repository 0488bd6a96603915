"""Keeps the index of a runs folder up to date, and reads rows from it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.database import Database, writing
from ml_experiments.runs.index.journal import Position, begin_journal, read_changes
from ml_experiments.runs.index.rows import COLUMNS, RunRow, has_result, read_row, read_stamp

T = TypeVar("T")
Progress = Callable[[int, int], object]

_RUN_ID = re.compile(r"\d{8}-\d{6}-\d{3}[0-9a-f]{4}")  # what `new_run_id` returns
_BATCH = 500
_MIN_JOURNALED = 1000  # names in fewer folders are listed in a moment
# some file systems round modification times to seconds: a younger one may hide another change
_COARSE_NS = 2 * 10**9
# a folder that changes faster than it is read is shown as it was
_MAX_LOOKS = 3
_GOES_ON = ("pending", "running")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Rows to return, as parts of a SELECT.

    Attributes:
        condition: What follows WHERE; `runs` is the table.
        parameters: Those of the condition.
        order: What follows ORDER BY.
        sorted_by: The path of a value that goes before this order; runs without it come last.
        direction: Of `sorted_by`.
        needs_all: Whether it looks at more than ids, so that every run has to be read before.
    """

    condition: str = "1"
    parameters: tuple[Any, ...] = ()
    order: str = "runs.is_dated DESC, runs.run_id DESC"
    sorted_by: str | None = None
    direction: str = "ASC"
    needs_all: bool = False


class RunIndex:
    """The index of one runs folder.

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

    def close(self) -> None:
        """Close the index's file."""
        self._database.close()

    def paths(self) -> tuple[str, ...]:
        """Return the paths of all values that some run has, such as `config.lr`.

        Raises:
            RunFolderError: If the runs folder is not readable.
        """

        def read(connection: sqlite3.Connection) -> tuple[str, ...]:
            self._refresh_all(connection)
            return tuple(path for (path,) in connection.execute("SELECT path FROM paths"))

        return self._database.use(read)

    def rows(self, selection: Selection, limit: int | None = None) -> list[RunRow]:
        """Return rows; each is what its folder says now.

        Raises:
            RunFolderError: If the runs folder is not readable.
        """
        return self._database.use(lambda connection: self._rows(connection, selection, limit))

    def count(self, selection: Selection) -> int:
        """Return how many rows a selection has.

        Raises:
            RunFolderError: If the runs folder is not readable.
        """

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

        Raises:
            RunFolderError: If the runs folder is not readable.
        """

        def read(connection: sqlite3.Connection) -> list[str]:
            self._refresh_names(connection, is_listed=is_listed)
            # without a prefix, the index of ids would be read whole
            condition = "run_id >= ? AND run_id < ?" if prefix else "1"
            ends = (prefix, f"{prefix}\U0010ffff") if prefix else ()
            found = connection.execute(
                f"SELECT run_id FROM runs WHERE {condition} "
                "ORDER BY is_dated DESC, run_id DESC LIMIT ?",
                (*ends, _limit(limit)),
            )
            return [name for (name,) in found]

        return self._database.use(read)

    def _rows(
        self, connection: sqlite3.Connection, selection: Selection, limit: int | None
    ) -> list[RunRow]:
        self._refresh(connection, selection)
        for look in range(_MAX_LOOKS):
            found = _query(connection, selection, limit)
            run_id = 3 + COLUMNS.index("run_id")
            stale = [
                row[run_id]
                for row in found
                if (not look and not row[1]) or row[0] != read_stamp(self._runs_dir / row[run_id])
            ]
            if not stale:
                break
            self._read(connection, stale)
        return [_to_row(row) for row in found]

    def _refresh(self, connection: sqlite3.Connection, selection: Selection) -> None:
        if selection.needs_all:
            self._refresh_all(connection)
        else:
            self._refresh_names(connection)

    def _refresh_all(self, connection: sqlite3.Connection) -> None:
        self._refresh_names(connection)
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
                paths = _Paths(connection)
                for name, row, stamp, is_settled in read:
                    _remove_values(connection, paths, name)
                    if row is None:
                        connection.execute("DELETE FROM runs WHERE run_id = ?", (name,))
                    else:
                        _write_row(connection, paths, row, stamp, is_settled)
            self._on_progress(min(start + _BATCH, len(names)), len(names))

    def _read_one(self, name: str) -> tuple[str, RunRow | None, str, bool]:
        path = self._runs_dir / name
        stamp = read_stamp(path)  # before: what changes meanwhile is read again
        row = read_row(RunFolder(path))
        if row.problem and not path.is_dir():
            return name, None, stamp, False
        return name, row, stamp, has_result(stamp) and not row.problem

    def _refresh_names(self, connection: sqlite3.Connection, *, is_listed: bool = False) -> None:
        state = dict(connection.execute("SELECT name, value FROM state"))
        known = Position(state.get("journal", ""), state.get("offset", 0))
        try:
            status = self._runs_dir.stat()
            place, modified_at = f"{status.st_dev}:{status.st_ino}", status.st_mtime_ns
        except FileNotFoundError:
            place, modified_at = "", 0
        except OSError as e:
            raise _unreadable(self._runs_dir, e) from e
        changes, position, is_whole = read_changes(self._runs_dir, known)
        is_same_place = place == state.get("place")
        reached = state.get("modified_at", -1) if is_same_place and not is_listed else -1
        for change in changes:
            if change.before == reached:
                reached = change.after
        is_young = time.time_ns() - modified_at < _COARSE_NS
        if reached == modified_at and position == known:
            return
        names = None if reached == modified_at else set(self._list())
        if names is not None and len(names) >= _MIN_JOURNALED:
            begin_journal(self._runs_dir)
        with writing(connection):
            if not is_whole or not is_same_place:  # changes of runs may have gone unseen
                connection.execute("UPDATE runs SET is_settled = 0")
            for name in {change.run_id for change in changes if "/" not in change.run_id}:
                connection.execute(
                    "UPDATE runs SET is_settled = 0, stamp = NULL WHERE run_id = ?", (name,)
                )
                if names is None:
                    is_there = is_run_folder(self._runs_dir / name)
                    (_add_names if is_there else _remove_names)(connection, [name])
            if names is not None:
                indexed = {name for (name,) in connection.execute("SELECT run_id FROM runs")}
                _add_names(connection, names - indexed)
                _remove_names(connection, indexed - names)
                modified_at = -1 if is_young else modified_at
            for name, value in (
                ("journal", position.journal),
                ("offset", position.offset),
                ("place", place),
                ("modified_at", modified_at),
            ):
                connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

    def _list(self) -> Iterator[str]:
        try:
            with os.scandir(self._runs_dir) as entries:
                yield from (entry.name for entry in entries if is_run_folder(entry))
        except FileNotFoundError:
            return
        except OSError as e:
            raise _unreadable(self._runs_dir, e) from e


def is_run_folder(entry: os.DirEntry[str] | Path) -> bool:
    """Return whether an entry of a runs folder is the folder of a run."""
    # other tools keep folders here too, as TensorBoard does
    if entry.name.startswith("."):
        return False
    if isinstance(entry, Path):
        if entry.is_symlink() or not entry.is_dir():
            return False
    elif not entry.is_dir(follow_symlinks=False):
        return False
    if _RUN_ID.fullmatch(entry.name):
        return True
    # a name that isn't Unicode can't be printed
    return entry.name.isprintable() and Path(entry, "spec.json").exists()


def _query(
    connection: sqlite3.Connection, selection: Selection, limit: int | None
) -> list[tuple[Any, ...]]:
    columns = ", ".join(f"runs.{name}" for name in COLUMNS)
    start = f"SELECT runs.stamp, runs.is_settled, runs.data, {columns} FROM"
    condition, order = selection.condition, selection.order
    if selection.sorted_by is None:
        query = f"{start} runs WHERE {condition} ORDER BY {order} LIMIT ?"
        return connection.execute(query, (*selection.parameters, _limit(limit))).fetchall()
    path = "(SELECT id FROM paths WHERE path = ?)"
    parameters = (selection.sorted_by, *selection.parameters)
    found = connection.execute(
        f"{start} vals CROSS JOIN runs ON runs.id = vals.run WHERE vals.path = {path} AND "
        f"{condition} ORDER BY vals.value {selection.direction}, {order} LIMIT ?",
        (*parameters, _limit(limit)),
    ).fetchall()
    rest = None if limit is None else limit - len(found)
    if rest != 0:
        found += connection.execute(
            f"{start} runs WHERE +runs.id NOT IN (SELECT run FROM vals WHERE path = {path}) AND "
            f"{condition} ORDER BY {order} LIMIT ?",
            (*parameters, _limit(rest)),
        )
    return found


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


class _Paths:
    """The numbers that stand for the paths of values."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._numbers: dict[str, int] = {}

    def __getitem__(self, path: str) -> int:
        if path not in self._numbers:
            self._connection.execute("INSERT OR IGNORE INTO paths (path) VALUES (?)", (path,))
            found = self._connection.execute("SELECT id FROM paths WHERE path = ?", (path,))
            self._numbers[path] = found.fetchone()[0]
        return self._numbers[path]


def _write_row(
    connection: sqlite3.Connection, paths: _Paths, row: RunRow, stamp: str, is_settled: bool
) -> None:
    values = [getattr(row, name) for name in COLUMNS if name != "run_id"]
    names = [name for name in COLUMNS if name != "run_id"]
    assignments = ", ".join(f"{name} = ?" for name in ("stamp", "is_settled", "data", *names))
    _add_names(connection, [row.run_id])
    connection.execute(
        f"UPDATE runs SET {assignments} WHERE run_id = ?",
        (stamp, is_settled, json.dumps(row.values), *values, row.run_id),
    )
    number = _number_of(connection, row.run_id)
    connection.executemany(
        "INSERT OR IGNORE INTO vals VALUES (?, ?, ?)",
        [(paths[path], value, number) for path, value in row.values.items()],
    )


def _remove_values(connection: sqlite3.Connection, paths: _Paths, name: str) -> None:
    found = connection.execute("SELECT id, data FROM runs WHERE run_id = ?", (name,)).fetchone()
    if found is None or found[1] is None:
        return
    connection.executemany(
        "DELETE FROM vals WHERE path = ? AND value = ? AND run = ?",
        [(paths[path], value, found[0]) for path, value in json.loads(found[1]).items()],
    )


def _number_of(connection: sqlite3.Connection, name: str) -> int:
    (number,) = connection.execute("SELECT id FROM runs WHERE run_id = ?", (name,)).fetchone()
    return int(number)


def _add_names(connection: sqlite3.Connection, names: Iterable[str]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO runs (run_id, is_dated) VALUES (?, ?)",
        [(name, bool(_RUN_ID.fullmatch(name))) for name in sorted(names)],
    )


def _remove_names(connection: sqlite3.Connection, names: Iterable[str]) -> None:
    paths = _Paths(connection)
    for name in names:
        _remove_values(connection, paths, name)
        connection.execute("DELETE FROM runs WHERE run_id = ?", (name,))


def _to_row(found: Sequence[Any]) -> RunRow:
    fields = dict(zip(COLUMNS, found[3:], strict=True))
    return RunRow(**fields, values=json.loads(found[2]) if found[2] else {})


def _unreadable(runs_dir: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"the runs folder {runs_dir} is not readable: {error.strerror}; "
        "ML_EXPERIMENTS_RUNS_DIR names another"
    )
