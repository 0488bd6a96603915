"""Which run folders there are: keeps their names in the index up to date."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.index.database import writing
from ml_experiments.runs.index.journal import Change, Position, begin_journal, read_changes
from ml_experiments.runs.index.tables import add_runs, remove_runs

_RUN_ID = re.compile(r"\d{8}-\d{6}-\d{3}[0-9a-f]{4}")  # what `new_run_id` returns
_MIN_JOURNALED = 1000  # names in fewer folders are listed in a moment
# some file systems round modification times to seconds: a younger one may hide another change
_COARSE_NS = 2 * 10**9
_UNKNOWN = -1  # no modification time


@dataclass(frozen=True)
class _Seen:
    """The state of a runs folder at which the index knows all of its runs.

    Attributes:
        place: Which folder it is, though another may be at the same path.
        modified_at: Its modification time; _UNKNOWN if it can't be trusted.
        position: How far its journal was read.
    """

    place: str = ""
    modified_at: int = _UNKNOWN
    position: Position = field(default_factory=Position)


def refresh_names(
    connection: sqlite3.Connection, runs_dir: Path, *, is_listed: bool = False
) -> None:
    """Bring the names in the index up to date; runs that may have changed are read again later.

    Args:
        connection: The index.
        runs_dir: The runs folder.
        is_listed: Whether the folder has to be listed, though nothing seems to have changed.

    Raises:
        RunFolderError: If the folder is not readable.
    """
    seen = _read_seen(connection)
    place, modified_at = _look_at(runs_dir)
    changes, position, is_whole = read_changes(runs_dir, seen.position)
    is_same_place = place == seen.place
    reached = seen.modified_at if is_same_place and not is_listed else _UNKNOWN
    for change in changes:
        if change.before == reached:
            reached = change.after
    is_explained = reached == modified_at
    if is_explained and position == seen.position:
        return
    names = None if is_explained else set(_list_names(runs_dir))
    if names is not None and len(names) >= _MIN_JOURNALED:
        begin_journal(runs_dir)
    with writing(connection):
        if not is_whole or not is_same_place:  # changes of runs may have gone unseen
            connection.execute("UPDATE runs SET is_settled = 0")
        _apply(connection, runs_dir, changes, names)
        is_young = time.time_ns() - modified_at < _COARSE_NS
        is_trusted = is_explained or not is_young
        _write_seen(connection, _Seen(place, modified_at if is_trusted else _UNKNOWN, position))


def _apply(
    connection: sqlite3.Connection,
    runs_dir: Path,
    changes: list[Change],
    names: set[str] | None,
) -> None:
    """Enter what has changed: what the journal says, and the names that are there if listed."""
    changed = {change.run_id for change in changes if "/" not in change.run_id}
    connection.executemany(
        "UPDATE runs SET is_settled = 0, stamp = NULL WHERE run_id = ?",
        [(name,) for name in changed],
    )
    if names is None:
        there = {name for name in changed if is_run_folder(runs_dir / name)}
        added, removed = there, changed - there
    else:
        indexed = {name for (name,) in connection.execute("SELECT run_id FROM runs")}
        added, removed = names - indexed, indexed - names
    add_runs(connection, [(name, is_dated(name)) for name in sorted(added)])
    remove_runs(connection, removed)


def is_dated(name: str) -> bool:
    """Return whether the name of a run folder is an id, which begins with the time."""
    return _RUN_ID.fullmatch(name) is not None


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
    if is_dated(entry.name):
        return True
    # a name that isn't Unicode can't be printed
    return entry.name.isprintable() and Path(entry, "spec.json").exists()


def _list_names(runs_dir: Path) -> Iterator[str]:
    try:
        with os.scandir(runs_dir) as entries:
            yield from (entry.name for entry in entries if is_run_folder(entry))
    except FileNotFoundError:
        return
    except OSError as e:
        raise _unreadable(runs_dir, e) from e


def _look_at(runs_dir: Path) -> tuple[str, int]:
    """Return which folder this is, and when it was modified."""
    try:
        status = runs_dir.stat()
    except FileNotFoundError:
        return "", 0
    except OSError as e:
        raise _unreadable(runs_dir, e) from e
    return f"{status.st_dev}:{status.st_ino}", status.st_mtime_ns


def _read_seen(connection: sqlite3.Connection) -> _Seen:
    state = dict(connection.execute("SELECT name, value FROM state"))
    position = Position(state.get("journal", ""), state.get("offset", 0))
    return _Seen(state.get("place", ""), state.get("modified_at", _UNKNOWN), position)


def _write_seen(connection: sqlite3.Connection, seen: _Seen) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO state VALUES (?, ?)",
        [
            ("journal", seen.position.journal),
            ("offset", seen.position.offset),
            ("place", seen.place),
            ("modified_at", seen.modified_at),
        ],
    )


def _unreadable(runs_dir: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"the runs folder {runs_dir} is not readable: {error.strerror}; "
        "ML_EXPERIMENTS_RUNS_DIR names another"
    )
