"""The SQLite file of an index: where it is, its tables, and what happens when it is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_VERSION = 3  # another one: the file is built anew
_WAIT_S = 10.0  # for another process that writes
_SCHEMA = """
CREATE TABLE state (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    is_dated INTEGER NOT NULL,             -- its id says when it was made
    moment TEXT,                           -- when that was, as ids say it; NULL: not known yet
    stamp TEXT,                            -- of its files when it was read; NULL: read it again
    is_settled INTEGER NOT NULL DEFAULT 0, -- it changes only if the journal says so
    status TEXT, experiment TEXT, name TEXT, backend TEXT, gpu TEXT, sweep TEXT, created_at TEXT,
    seconds REAL, cost_usd REAL, billed_usd REAL, attempts INTEGER, seed INTEGER,
    error TEXT, error_kind TEXT, note TEXT, problem TEXT,
    data TEXT                              -- config, results and tags by path, as JSON
);
CREATE INDEX newest ON runs (moment, run_id);
CREATE INDEX unsettled ON runs (id) WHERE is_settled = 0;
CREATE TABLE paths (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE vals (path INTEGER, value, run INTEGER, PRIMARY KEY (path, value, run)) WITHOUT ROWID;
"""
# the file is fine, but can't be used or written now: a full disk, a read-only one, a long wait
_UNUSABLE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)


class Database:
    """The index of one runs folder, in a file, or in memory where no file can be used.

    Args:
        runs_dir: The folder whose runs are indexed.
        index_dir: Where index files are.
    """

    def __init__(self, runs_dir: Path, index_dir: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        self._runs_dir = runs_dir
        digest = hashlib.sha256(str(runs_dir).encode("utf-8", "surrogateescape")).hexdigest()
        self.file = index_dir / f"{digest[:24]}.sqlite3"

    def use(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Return what an operation returns, which may be called several times.

        A damaged file is replaced. Where a file can't be used or written, the operation works on
        a copy in memory, from then on.
        """
        for is_last in (False, False, True):
            try:
                if self._connection is None:
                    self._connection = self._open()
                return operation(self._connection)
            except sqlite3.Error as e:
                if is_last:
                    self._move_to_memory(is_readable=False)
                elif (getattr(e, "sqlite_errorcode", 0) & 0xFF) in _UNUSABLE:
                    self._move_to_memory(is_readable=True)
                else:
                    self._remove()
        assert self._connection is not None
        return operation(self._connection)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        is_new = not self.file.exists()
        if is_new:
            with contextlib.suppress(OSError):
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _remove_orphans(self.file.parent)
        connection = _connect(str(self.file))
        try:
            if _version(connection) != _VERSION:
                self._create(connection)
            known = connection.execute("SELECT value FROM state WHERE name = 'runs_dir'").fetchone()
            if known != (_encodable(self._runs_dir),):
                raise sqlite3.DatabaseError("this is the index of another folder")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        with writing(connection):
            if _version(connection) == _VERSION:  # another process was faster
                return
            if _version(connection) != 0:
                raise sqlite3.DatabaseError("the index has the format of another version")
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO state VALUES ('runs_dir', ?)", (_encodable(self._runs_dir),)
            )
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _remove(self) -> None:
        self.close()
        for suffix in ("", "-journal"):
            with contextlib.suppress(OSError):
                Path(f"{self.file}{suffix}").unlink(missing_ok=True)

    def _move_to_memory(self, *, is_readable: bool) -> None:
        memory = _connect(":memory:")
        if is_readable and self._connection is not None:
            try:
                self._connection.backup(memory)
            except sqlite3.Error:
                memory = _connect(":memory:")
        if _version(memory) != _VERSION:
            self._create(memory)
        self.close()
        self._connection = memory


@contextlib.contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of a block's changes, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _connect(file: str) -> sqlite3.Connection:
    # the garbage collector may close it in any thread
    connection = sqlite3.connect(
        file, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -32000")
    return connection


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _encodable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _remove_orphans(index_dir: Path) -> None:
    """Remove the indexes of folders that are gone."""
    for file in index_dir.glob("*.sqlite3"):
        with contextlib.suppress(sqlite3.Error, OSError):
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as found:
                (runs_dir,) = found.execute(
                    "SELECT value FROM state WHERE name = 'runs_dir'"
                ).fetchone()
            if not Path(runs_dir).exists():
                file.unlink()
