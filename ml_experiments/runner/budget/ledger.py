"""The ledger: what was reserved for runs and what they cost, shared by all commands of a user.

It is one SQLite file. Its lock belongs to the process that holds it: the system releases it when
the process dies, and the next one undoes what was half written.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.backends.forecast import dollars
from ml_experiments.errors import BudgetError
from ml_experiments.serialization.files import write_atomically

_VERSION = 1
_WAIT_S = 10.0  # for another command, which holds the lock for milliseconds
_SCHEMA = """
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL,    -- what shares a cap: run:ID or sweep:ID
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    runs_dir TEXT NOT NULL,
    day TEXT NOT NULL,      -- UTC
    reserved_usd REAL NOT NULL CHECK (reserved_usd BETWEEN 0 AND 1e12),
    spent_usd REAL CHECK (spent_usd BETWEEN 0 AND 1e12) -- NULL until it is known
) STRICT;
CREATE INDEX of_scope ON reservations (scope);
CREATE INDEX of_day ON reservations (day);
"""


@dataclass(frozen=True)
class Ask:
    """What a run asks for.

    Attributes:
        what: What the message calls it, such as `a run on h100`.
        worst_case_usd: What it could cost; that much is reserved if there is enough.
        least_usd: With less than that, it is refused.
    """

    run_id: str
    attempt: int
    runs_dir: Path
    what: str
    worst_case_usd: float
    least_usd: float


@dataclass(frozen=True)
class Cap:
    """A limit.

    Attributes:
        name: What the message calls it, such as `the day's cap`.
        max_usd: The limit; None for none.
        advice: How it can be raised.
        known_spent_usd: What is known to be spent from other records, such as a run's folder.
    """

    name: str
    max_usd: float | None
    advice: str
    known_spent_usd: float = 0.0


@dataclass(frozen=True)
class Reservation:
    """Money that is set aside for one attempt at a run."""

    number: int
    run_id: str
    attempt: int
    runs_dir: Path
    usd: float


SpentReader = Callable[[Path, str, int], float | None]


class Ledger:
    """The ledger in a file.

    Args:
        file: Where it is; it is made on first use.
        read_spent: Returns what an attempt at a run has cost, from the runs folder, its id and
            the attempt's number; None while that isn't known.
    """

    def __init__(self, file: Path, read_spent: SpentReader) -> None:
        self.file = file
        self._read_spent = read_spent

    def reserve(
        self, asks: Sequence[Ask], scope: str, cap: Cap, day_cap: Cap, *, is_kept: bool = True
    ) -> tuple[Reservation, ...]:
        """Reserve money for all of some runs, or for none of them.

        Each gets its worst case; where that is too much, what is left is divided.

        Args:
            asks: The runs.
            scope: What shares the cap.
            cap: For all that has this scope, whenever it was.
            day_cap: For everything on this day.
            is_kept: Whether it is a reservation, or only the question whether there could be one.

        Raises:
            BudgetError: If one would get less than it needs, or the ledger can't be used.
        """
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        with self._transaction(is_kept=is_kept) as connection:
            if cap.max_usd is not None or day_cap.max_usd is not None:
                self._settle_ended(connection, scope, today)
            amounts = [ask.worst_case_usd for ask in asks]
            for limit, column, value in ((cap, "scope", scope), (day_cap, "day", today)):
                if limit.max_usd is not None:
                    found = _total(connection, column, value)
                    waiting = _unsettled(connection, column, value)
                    amounts = _within(asks, amounts, limit, found, waiting)
            reservations = []
            for ask, usd in zip(asks, amounts, strict=True):
                runs_dir = os.fspath(ask.runs_dir)
                values = (scope, ask.run_id, ask.attempt, runs_dir, today, usd)
                number = connection.execute(
                    "INSERT INTO reservations "
                    "(scope, run_id, attempt, runs_dir, day, reserved_usd) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                ).lastrowid
                assert number is not None
                made = Reservation(number, ask.run_id, ask.attempt, ask.runs_dir, usd)
                reservations.append(made)
            return tuple(reservations)

    def settle(self, reservation: Reservation, spent_usd: float) -> None:
        """Replace a reservation by what was spent.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        with self._transaction() as connection:
            _settle(connection, reservation.number, spent_usd)

    def give_back(self, run_id: str, attempt: int) -> None:
        """Settle what is reserved for an attempt at a run that was never handed over.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE reservations SET spent_usd = 0 "
                "WHERE run_id = ? AND attempt = ? AND spent_usd IS NULL",
                (run_id, attempt),
            )

    def move_runs(self, runs_dir: Path) -> None:
        """Look for all runs in this folder from now on, where they were copied to.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        with self._transaction() as connection:
            connection.execute("UPDATE reservations SET runs_dir = ?", (os.fspath(runs_dir),))

    def correct(self, run_id: str, spent_usd: float) -> None:
        """Replace what a run has spent, in all its attempts that are settled.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        with self._transaction() as connection:
            settled = connection.execute(
                "SELECT id FROM reservations WHERE run_id = ? AND spent_usd IS NOT NULL",
                (run_id,),
            ).fetchall()
            for (number,) in settled:
                _settle(connection, number, spent_usd / len(settled))

    def spent_usd(self, scope: str) -> float:
        """Return what a scope has spent, reservations of runs that have not ended included.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        with self._transaction() as connection:
            self._settle_ended(connection, scope, today)
            return sum(_total(connection, "scope", scope))

    def copy_to(self, file: Path) -> None:
        """Copy the ledger as it is between two reservations; the copy appears whole.

        Raises:
            BudgetError: If it can't be read or written.
        """
        with self._transaction(is_kept=False) as connection:
            content = connection.serialize()
        try:
            if not file.exists() or file.read_bytes() != content:
                write_atomically(file, content)
        except OSError as e:
            raise BudgetError(f"the ledger can't be copied: {e}") from e

    def _settle_ended(self, connection: sqlite3.Connection, scope: str, day: str) -> None:
        """Settle what has ended though its client was gone by then."""
        waiting = connection.execute(
            "SELECT id, runs_dir, run_id, attempt FROM reservations "
            "WHERE spent_usd IS NULL AND (scope = ? OR day = ?)",
            (scope, day),
        ).fetchall()
        for number, runs_dir, run_id, attempt in waiting:
            spent_usd = self._read_spent(Path(runs_dir), run_id, attempt)
            if spent_usd is not None:
                _settle(connection, number, spent_usd)

    @contextlib.contextmanager
    def _transaction(self, *, is_kept: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the lock for a block; what it has written is kept unless it raises.

        Raises:
            BudgetError: If the ledger can't be used.
        """
        try:
            if not self.file.exists():
                self._make()
            if not self.file.stat().st_size:
                raise sqlite3.DatabaseError("file is empty")
            with contextlib.closing(
                sqlite3.connect(self.file, timeout=_WAIT_S, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._check(connection)
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT" if is_kept else "ROLLBACK")
        except (sqlite3.Error, OSError) as e:
            raise BudgetError(self._describe(e)) from e

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise BudgetError(
                f"the ledger {self.file} is of a newer ml_experiments; upgrade this one"
            )
        (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if version < _VERSION or problem != "ok":
            raise sqlite3.DatabaseError(problem if version else "it is not a ledger")

    def _make(self) -> None:
        """Make an empty ledger; it appears whole, so that an empty file is a damaged one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            with contextlib.closing(sqlite3.connect(draft)) as connection:
                connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
            with contextlib.suppress(FileExistsError):  # another command was faster
                self.file.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)

    def _describe(self, error: sqlite3.Error | OSError) -> str:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"the ledger {self.file} is locked by another process for more than {_WAIT_S:g} s, "
                "so it isn't known what may be spent; end that process "
                f"(fuser {self.file} names it), or try again"
            )
        if isinstance(error, OSError) or (
            code is not None
            and code & 0xFF
            in (
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_FULL,
                sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_PERM,
                sqlite3.SQLITE_READONLY,
            )
        ):
            return (
                f"the ledger {self.file} can't be written: {error}; free space or change its "
                "permissions, or choose another folder with ML_EXPERIMENTS_STATE_DIR"
            )
        return (
            f"the ledger {self.file} is damaged ({error}), so it isn't known what may be spent; "
            f"to begin a new one, in which nothing is spent: mv {self.file} {self.file}.damaged"
        )


def _total(connection: sqlite3.Connection, column: str, value: str) -> tuple[float, float]:
    """Return what is spent, and what is reserved for runs that have not ended."""
    spent, reserved = connection.execute(
        "SELECT total(spent_usd), total(CASE WHEN spent_usd IS NULL THEN reserved_usd END) "
        f"FROM reservations WHERE {column} = ?",
        (value,),
    ).fetchone()
    return spent, reserved


def _unsettled(connection: sqlite3.Connection, column: str, value: str) -> list[str]:
    """Return the latest runs that have a reservation and no outcome here."""
    found = connection.execute(
        f"SELECT DISTINCT run_id FROM reservations WHERE {column} = ? AND spent_usd IS NULL "
        "ORDER BY id DESC LIMIT 3",
        (value,),
    )
    return [run_id for (run_id,) in found]


def _settle(connection: sqlite3.Connection, number: int, spent_usd: float) -> None:
    connection.execute("UPDATE reservations SET spent_usd = ? WHERE id = ?", (spent_usd, number))


def _within(
    asks: Sequence[Ask],
    amounts: Sequence[float],
    cap: Cap,
    found: tuple[float, float],
    waiting: Sequence[str],
) -> list[float]:
    """Return amounts that a cap has room for.

    Raises:
        BudgetError: If one would get less than it needs.
    """
    assert cap.max_usd is not None
    spent, reserved = max(found[0], cap.known_spent_usd - found[1]), found[1]
    left = max(0.0, cap.max_usd - spent - reserved)
    shared = _divide(amounts, left)
    for ask, usd in zip(asks, shared, strict=True):
        # a millionth more or less is rounding
        if usd < ask.least_usd * (1 - 1e-6):
            what = ask.what if len(asks) == 1 else f"each of {len(asks)} runs, such as {ask.what},"
            raise BudgetError(
                f"{cap.name} of {dollars(cap.max_usd)} is too low, for {what} takes at least "
                f"{dollars(ask.least_usd)} and at most {dollars(ask.worst_case_usd)}, and "
                f"{dollars(left)} is left: at most {dollars(spent)} is spent, "
                f"{dollars(reserved)} is reserved for runs that have not ended{_named(waiting)}. "
                f"{cap.advice}, or choose a cheaper GPU type, a shorter timeout, fewer CPU cores "
                "or less memory"
            )
    return shared


def _named(waiting: Sequence[str]) -> str:
    return f" or whose outcome is not here ({', '.join(waiting)})" if waiting else ""


def _divide(amounts: Sequence[float], total: float) -> list[float]:
    """Return at most these amounts, such that they fit and the largest give way first."""
    shares = list(amounts)
    left = total
    for position, index in enumerate(sorted(range(len(amounts)), key=lambda i: amounts[i])):
        shares[index] = min(amounts[index], left / (len(amounts) - position))
        left -= shares[index]
    return shares
