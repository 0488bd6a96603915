"""The ledger: concurrent reservations, settling, and files that can't be trusted."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_experiments.errors import BudgetError
from ml_experiments.runner.budget import ledger as ledger_module
from ml_experiments.runner.budget.ledger import Ask, Cap, Ledger, Reservation

NO_CAP = Cap("the day's cap", None, "")


def unknown(_runs_dir: Path, _run_id: str, _attempt: int) -> float | None:
    return None


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.sqlite3", unknown)


def ask(run_id: str = "r1", worst: float = 1.0, least: float = 0.5, attempt: int = 1) -> Ask:
    return Ask(run_id, attempt, Path("runs"), "a run on t4", worst, least)


def cap(usd: float | None, known_spent_usd: float = 0.0) -> Cap:
    return Cap("the cap", usd, "Raise --max-cost", known_spent_usd)


def reserve(ledger: Ledger, usd: float | None, *asks: Ask, day: float | None = None) -> list[float]:
    day_cap = Cap("the day's cap", day, "Raise max_cost_per_day")
    made = ledger.reserve(asks or (ask(),), "run:r1", cap(usd), day_cap)
    return [reservation.usd for reservation in made]


def test_the_worst_case_is_reserved_where_there_is_enough(ledger: Ledger) -> None:
    assert reserve(ledger, 3.0) == [1.0]
    assert reserve(ledger, 3.0) == [1.0]
    assert ledger.spent_usd("run:r1") == 2.0


def test_else_what_is_left_is_reserved_down_to_the_least(ledger: Ledger) -> None:
    assert reserve(ledger, 1.7) == [1.0]
    assert reserve(ledger, 1.7) == [pytest.approx(0.7)]
    with pytest.raises(BudgetError) as refused:
        reserve(ledger, 1.7)
    message = str(refused.value)
    assert message.startswith("the cap of $1.70 is too low, for a run on t4 takes at least $0.50")
    assert "$0.00 is left: at most $0.00 is spent, $1.70 is reserved" in message
    assert "or whose outcome is not here (r1). Raise" in message
    assert "Raise --max-cost, or choose a cheaper GPU type" in message
    assert ledger.spent_usd("run:r1") == pytest.approx(1.7)


def test_what_was_spent_counts_and_not_what_was_reserved(ledger: Ledger) -> None:
    [made] = ledger.reserve([ask()], "run:r1", cap(1.0), NO_CAP)
    ledger.settle(made, 0.25)
    assert reserve(ledger, 1.0) == [0.75]


def test_a_cap_counts_what_the_run_folder_knows_though_the_ledger_does_not(ledger: Ledger) -> None:
    [made] = ledger.reserve([ask()], "run:r1", cap(1.0, known_spent_usd=0.4), NO_CAP)
    assert made.usd == pytest.approx(0.6)


def test_the_days_cap_is_for_all_scopes_of_the_day(ledger: Ledger) -> None:
    ledger.reserve([ask()], "run:other", cap(None), NO_CAP)
    assert reserve(ledger, 5.0, day=1.8) == [pytest.approx(0.8)]
    with pytest.raises(BudgetError, match=r"the day's cap of \$1\.80 .*Raise max_cost_per_day"):
        reserve(ledger, 5.0, day=1.8)


def test_points_share_what_there_is_and_the_largest_give_way(ledger: Ledger) -> None:
    points = [ask("a", 0.6), ask("b", 3.0), ask("c", 3.0)]
    assert reserve(ledger, 3.0, *points) == pytest.approx([0.6, 1.2, 1.2])


def test_all_points_are_reserved_or_none(ledger: Ledger) -> None:
    points = [ask(f"p{number}") for number in range(3)]
    with pytest.raises(BudgetError, match="for each of 3 runs, such as a run on t4, takes"):
        reserve(ledger, 1.4, *points)
    assert ledger.spent_usd("run:r1") == 0


def test_a_question_reserves_nothing(ledger: Ledger) -> None:
    [made] = ledger.reserve([ask()], "run:r1", cap(0.8), NO_CAP, is_kept=False)
    assert made.usd == 0.8
    assert ledger.spent_usd("run:r1") == 0


def test_what_has_ended_without_its_client_is_settled_by_the_next(tmp_path: Path) -> None:
    costs = {("r1", 1): 0.1, ("r1", 2): None}
    ledger = Ledger(tmp_path / "ledger", lambda _, run_id, attempt: costs[run_id, attempt])
    ledger.reserve([ask()], "run:r1", cap(2.0), NO_CAP)
    ledger.reserve([ask(attempt=2)], "run:r1", cap(2.0), NO_CAP)
    assert ledger.spent_usd("run:r1") == pytest.approx(1.1)


def test_concurrent_commands_never_reserve_more_than_there_is(ledger: Ledger) -> None:
    def one(number: int) -> Reservation | None:
        try:
            [made] = Ledger(ledger.file, unknown).reserve(
                [ask(f"r{number}", 0.1, 0.1)], "sweep:s", cap(1.0), NO_CAP
            )
        except BudgetError:
            return None
        return made

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(one, range(24)))
    assert sum(reservation is not None for reservation in made) == 10
    assert ledger.spent_usd("sweep:s") == pytest.approx(1.0)


def overwrite(file: Path) -> None:
    file.write_bytes(b"this is no database, though it is long enough for one" * 40)


def truncate(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: 4096 + 100])


def lose_its_table(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE reservations")


@pytest.mark.parametrize("damage", [overwrite, truncate, cut, lose_its_table])
def test_a_damaged_ledger_refuses_and_says_what_to_do(
    ledger: Ledger, damage: Callable[[Path], None]
) -> None:
    reserve(ledger, 5.0)
    damage(ledger.file)
    with pytest.raises(BudgetError, match=r"is damaged \(.*\), so it isn't known .*: mv "):
        reserve(ledger, 5.0)


def test_a_ledger_of_a_newer_version_is_left_alone(ledger: Ledger) -> None:
    reserve(ledger, 5.0)
    with sqlite3.connect(ledger.file) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(BudgetError, match="newer ml_experiments"):
        reserve(ledger, 5.0)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BudgetError, match=r"can't be written: .* ML_EXPERIMENTS_STATE_DIR"):
        reserve(Ledger(tmp_path / "file" / "ledger", unknown), 5.0)


@pytest.mark.parametrize("usd", [-1.0, math.inf])
def test_no_amount_gets_in_that_is_none(ledger: Ledger, usd: float) -> None:
    [made] = ledger.reserve([ask()], "run:r1", cap(2.0), NO_CAP)
    with pytest.raises(BudgetError):
        ledger.settle(made, usd)
    assert ledger.spent_usd("run:r1") == 1.0


HOLDER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_spill = 1")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("UPDATE reservations SET reserved_usd = 0")
print("locked", flush=True)
if sys.argv[2] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_a_lock_of_a_dead_process_is_none_and_its_half_writing_is_undone(ledger: Ledger) -> None:
    reserve(ledger, 1.5)
    command = [sys.executable, "-c", HOLDER, str(ledger.file), "dies"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "locked\n"
    assert reserve(ledger, 1.5) == [0.5]


def test_a_lock_that_a_living_process_keeps_refuses(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve(ledger, 5.0)
    monkeypatch.setattr(ledger_module, "_WAIT_S", 0.1)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(ledger.file), "lives"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BudgetError, match="locked by another process for more than 0"):
            reserve(ledger, 5.0)
        holder.stdin.close()
    assert reserve(ledger, 5.0) == [1.0]


def test_a_copy_is_a_ledger_and_settles_runs_where_they_were_copied_to(tmp_path: Path) -> None:
    ended = {(tmp_path / "new", "r1")}
    read = lambda runs_dir, run_id, _attempt: 0.25 if (runs_dir, run_id) in ended else None  # noqa: E731
    first, second = (Ledger(tmp_path / name / "ledger", read) for name in ("a", "b"))
    reserve(first, 3.0, ask("r1"), ask("r2"))
    second.file.parent.mkdir()
    first.copy_to(second.file)
    reserve(first, 3.0, ask("r3"))
    assert second.spent_usd("run:r1") == 2.0
    second.move_runs(tmp_path / "new")
    assert second.spent_usd("run:r1") == 1.25
    assert first.spent_usd("run:r1") == 3.0


def test_what_was_never_handed_over_is_given_back(ledger: Ledger) -> None:
    reserve(ledger, 3.0, ask(attempt=1))
    reserve(ledger, 3.0, ask(attempt=2))
    ledger.give_back("r1", 2)
    ledger.give_back("r2", 1)
    assert ledger.spent_usd("run:r1") == 1.0
