"""The tables of an index: rows of runs and their values, written and selected."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ml_experiments.runs.index.rows import COLUMNS, RunRow

_NEWEST_FIRST = "runs.moment DESC, runs.run_id DESC"
_MOMENT_LENGTH = 19  # of `20261123-141502-417`
_WRITTEN = tuple(name for name in COLUMNS if name != "run_id")


@dataclass(frozen=True)
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
    order: str = _NEWEST_FIRST
    sorted_by: str | None = None
    direction: str = "ASC"
    needs_all: bool = False


@dataclass(frozen=True)
class Entry:
    """A row as it is in the index.

    Attributes:
        row: The row.
        stamp: Of the files that it was read from; None if it has to be read.
        is_settled: Whether it changes only if the journal says so.
    """

    row: RunRow
    stamp: str | None
    is_settled: bool


def select_entries(
    connection: sqlite3.Connection, selection: Selection, limit: int | None
) -> list[Entry]:
    """Return the rows of a selection."""
    columns = ", ".join(f"runs.{name}" for name in COLUMNS)
    start = f"SELECT runs.stamp, runs.is_settled, runs.data, {columns} FROM"
    condition, order = selection.condition, selection.order
    if selection.sorted_by is None:
        query = f"{start} runs WHERE {condition} ORDER BY {order} LIMIT ?"
        return _entries(connection.execute(query, (*selection.parameters, _limit(limit))))
    path = "(SELECT id FROM paths WHERE path = ?)"
    parameters = (selection.sorted_by, *selection.parameters)
    found = _entries(
        connection.execute(
            f"{start} vals CROSS JOIN runs ON runs.id = vals.run WHERE vals.path = {path} AND "
            f"{condition} ORDER BY vals.value {selection.direction}, {order} LIMIT ?",
            (*parameters, _limit(limit)),
        )
    )
    rest = None if limit is None else limit - len(found)
    if rest != 0:
        found += _entries(
            connection.execute(
                f"{start} runs WHERE +runs.id NOT IN (SELECT run FROM vals WHERE path = {path}) "
                f"AND {condition} ORDER BY {order} LIMIT ?",
                (*parameters, _limit(rest)),
            )
        )
    return found


def select_names(connection: sqlite3.Connection, prefix: str, limit: int | None) -> list[str]:
    """Return the newest names of run folders that begin with a prefix."""
    # without a prefix, the condition would lead SQLite to read and sort all names
    condition = "run_id >= ? AND run_id < ?" if prefix else "1"
    ends = (prefix, f"{prefix}\U0010ffff") if prefix else ()
    query = f"SELECT run_id FROM runs WHERE {condition} ORDER BY {_NEWEST_FIRST} LIMIT ?"
    return [name for (name,) in connection.execute(query, (*ends, _limit(limit)))]


def add_runs(connection: sqlite3.Connection, names: Iterable[tuple[str, bool]]) -> None:
    """Add runs that have to be read: names, and whether they are dated."""
    connection.executemany(
        "INSERT OR IGNORE INTO runs (run_id, is_dated, moment) VALUES (?, ?, ?)",
        [(name, is_dated, name[:_MOMENT_LENGTH] if is_dated else None) for name, is_dated in names],
    )


def remove_runs(connection: sqlite3.Connection, names: Iterable[str]) -> None:
    """Remove runs and their values."""
    for name in names:
        _remove_values(connection, name)
        connection.execute("DELETE FROM runs WHERE run_id = ?", (name,))


def write_row(connection: sqlite3.Connection, row: RunRow, stamp: str, is_settled: bool) -> None:
    """Replace the row of a run and its values."""
    number = _remove_values(connection, row.run_id)
    if number is None:  # another process has removed it
        return
    assignments = ", ".join(f"{name} = ?" for name in ("stamp", "is_settled", "data", *_WRITTEN))
    connection.execute(
        f"UPDATE runs SET {assignments}, moment = iif(is_dated, moment, ?) WHERE id = ?",
        (
            *(stamp, is_settled, json.dumps(row.values)),
            *(getattr(row, name) for name in _WRITTEN),
            _moment(row.created_at),
            number,
        ),
    )
    connection.executemany("INSERT OR IGNORE INTO paths (path) VALUES (?)", zip(row.values))
    connection.executemany(
        "INSERT OR IGNORE INTO vals VALUES ((SELECT id FROM paths WHERE path = ?), ?, ?)",
        [(path, value, number) for path, value in row.values.items()],
    )


def select_undated(connection: sqlite3.Connection) -> list[str]:
    """Return the names of runs whose place in the order is known only once they are read."""
    query = "SELECT run_id FROM runs WHERE moment IS NULL AND stamp IS NULL"
    return [name for (name,) in connection.execute(query)]


def _moment(created_at: str | None) -> str:
    """Return a time as the id of a run begins, so that both can be compared."""
    digits = "".join(filter(str.isdigit, created_at or ""))
    return f"{digits[:8]}-{digits[8:14]}-{digits[14:17]}"


def _remove_values(connection: sqlite3.Connection, name: str) -> int | None:
    """Remove the values of a run; return the number that stands for it, None if it isn't there."""
    found = connection.execute("SELECT id, data FROM runs WHERE run_id = ?", (name,)).fetchone()
    if found is None:
        return None
    number, data = found
    if data is not None:
        connection.executemany(
            "DELETE FROM vals WHERE path = (SELECT id FROM paths WHERE path = ?) AND value = ? "
            "AND run = ?",
            [(path, value, number) for path, value in json.loads(data).items()],
        )
    return int(number)


def _entries(found: Iterable[Sequence[Any]]) -> list[Entry]:
    return [
        Entry(
            RunRow(
                **dict(zip(COLUMNS, columns, strict=True)), values=json.loads(data) if data else {}
            ),
            stamp,
            bool(is_settled),
        )
        for stamp, is_settled, data, *columns in found
    ]


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit
