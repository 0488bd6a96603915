"""What survives a restart of the server: one SQLite file of serialised objects and log lines."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from pathlib import Path

from modal_emulator.storage.sqlite_file import open_sqlite, transaction

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
    """Raised when another emulator uses the same state folder."""


class State:
    """Objects by kind and id, and log lines by app; used in the server's thread only.

    Raises:
        StateInUseError: If another emulator uses the folder.
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
        self._db = open_sqlite(state_dir / "state.sqlite", _SCHEMA)

    def put(self, kind: str, object_id: str, data: bytes) -> None:
        """Add or replace an object; a replaced one keeps its place in the order of `objects`."""
        self._db.execute(
            "insert into objects values (?, ?, ?) "
            "on conflict (kind, id) do update set data = excluded.data",
            (kind, object_id, data),
        )

    def delete(self, kind: str, object_id: str) -> None:
        """Delete an object."""
        self._db.execute("delete from objects where kind = ? and id = ?", (kind, object_id))

    def objects(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Yield id and data of every object of a kind, in the order of their creation."""
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
        """Return the log lines of an app, oldest first."""
        rows = self._db.execute(
            "select data from logs where app_id = ? order by entry", (app_id,)
        ).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close the file and unlock the folder."""
        self._db.close()
        self._lock.close()
