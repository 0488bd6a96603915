"""What survives a restart of the server: one SQLite file of typed, serialised objects."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from modal_emulator.storage.sqlite_file import transaction

_SCHEMA = """
create table if not exists objects (
    kind text not null, id text not null, data blob not null, primary key (kind, id)
);
create table if not exists logs (
    entry integer primary key autoincrement, app_id text not null, data text not null
);
create index if not exists logs_by_app on logs (app_id, entry);
"""


class StateInUseError(RuntimeError):
    """Raised when another server uses the same state folder."""


class State:
    """Objects by kind and id, and log lines by app; used from the server's thread only.

    One server at a time may use a state folder.

    Raises:
        StateInUseError: when another one does.
    """

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (state_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            self._lock.close()
            raise StateInUseError(
                f"Another emulator uses the state folder {state_dir}. "
                "Stop it, or choose another folder."
            ) from e
        self._db = sqlite3.connect(state_dir / "state.sqlite", isolation_level=None)
        # WAL without a sync per write survives a killed process, which is what a restart means
        # here, at a cost of microseconds per call.
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        self._db.executescript(_SCHEMA)

    def put(self, kind: str, object_id: str, data: bytes) -> None:
        """Store an object under its kind and id, replacing what was there.

        What is replaced keeps its place: objects are read in the order in which they were made.
        """
        self._db.execute(
            "insert into objects values (?, ?, ?) "
            "on conflict (kind, id) do update set data = excluded.data",
            (kind, object_id, data),
        )

    def delete(self, kind: str, object_id: str) -> None:
        """Forget an object."""
        self._db.execute("delete from objects where kind = ? and id = ?", (kind, object_id))

    def objects(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Yield id and data of every object of a kind, oldest first."""
        rows = self._db.execute(
            "select id, data from objects where kind = ? order by rowid", (kind,)
        ).fetchall()
        yield from rows

    def append_logs(self, app_id: str, lines: Iterable[str]) -> None:
        """Append log lines of an app."""
        with transaction(self._db):
            self._db.executemany(
                "insert into logs (app_id, data) values (?, ?)", [(app_id, line) for line in lines]
            )

    def logs(self, app_id: str) -> list[str]:
        """Return the log lines of an app in order."""
        rows = self._db.execute(
            "select data from logs where app_id = ? order by entry", (app_id,)
        ).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close the file and let other servers use the folder."""
        self._db.close()
        self._lock.close()
