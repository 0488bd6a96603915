"""Reserves what runs may cost before they are handed over, and settles it when they have ended."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.backends.base import Backend, RunHandle
from ml_experiments.backends.forecast import Forecast, dollars
from ml_experiments.errors import BudgetError, RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.ledger import Ask, Cap, Ledger, Reservation
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.result import Attempt
from ml_experiments.runs.spec import PreparedRun
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.settings import MAX_USD, ask_above, max_cost_per_day, state_dir

# the attempt of a reservation that is for all attempts at a run, or for all points of a sweep
ALL_ATTEMPTS = 0
_SPENT_FILE = "spent.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What several runs may cost together.

    Attributes:
        scope: What they have in common, such as `sweep:ID`; it keeps its name when it is resumed.
        max_usd: The most that they may cost in all; None for no limit of their own.
        max_usd_each: The most that is reserved for one of them, so that others fit beside it.
    """

    scope: str
    max_usd: float | None = None
    max_usd_each: float | None = None

    @classmethod
    def of_run(cls, run_id: str, max_usd: float | None) -> Budget:
        """Return that of all attempts at one run."""
        return cls(f"run:{run_id}", max_usd)

    @property
    def is_capped(self) -> bool:
        """Whether there is a limit, be it the day's."""
        return self.max_usd is not None or max_cost_per_day() is not None


def open_ledger() -> Ledger:
    """Return the user's ledger."""
    return Ledger(state_dir() / "ledger.sqlite3", read_spent)


def reserve(
    runs: Sequence[PreparedRun],
    backend: Backend,
    runs_dir: Path,
    *,
    budget: Budget | None = None,
    attempt: int = 1,
    spent_usd: float = 0.0,
    is_kept: bool = True,
) -> tuple[PreparedRun, ...]:
    """Reserve what prepared runs may cost; all of them, or none.

    A run that can't have its worst case gets timeouts that fit what it has, so that Modal itself
    ends it in time. Runs that cost nothing are returned as they are.

    Args:
        runs: Prepared runs, of one backend.
        backend: Which is theirs.
        runs_dir: Where their folders are going to be.
        budget: What they share. By default, each run has its own, `spec.max_cost`, for all its
            attempts.
        attempt: Which attempt at the runs it is.
        spent_usd: What earlier attempts have cost according to the run folder.
        is_kept: Whether it is a reservation, or only the question whether there could be one.

    Raises:
        BudgetError: If a cap has no room for them, or it can't be known.
    """
    if budget is None:
        return tuple(
            _reserve([run], Budget.of_run(run.spec.run_id, run.spec.max_cost), *rest)[0]
            for rest in [(backend, runs_dir, attempt, spent_usd, is_kept)]
            for run in runs
        )
    return _reserve(runs, budget, backend, runs_dir, attempt, spent_usd, is_kept)


def _reserve(
    runs: Sequence[PreparedRun],
    budget: Budget,
    backend: Backend,
    runs_dir: Path,
    attempt: int,
    spent_usd: float,
    is_kept: bool,
) -> tuple[PreparedRun, ...]:
    paid = [run for run in runs if run.forecast is not None]
    if not paid:
        return tuple(runs)
    unpriced = [run for run in paid if run.forecast.worst_case_usd is None]
    is_capped = budget.is_capped
    if unpriced and not is_capped:
        return tuple(runs)
    if unpriced:
        raise no_price(unpriced[0].spec.gpu, unpriced[0].forecast)
    asks = [
        Ask(
            run.spec.run_id,
            attempt,
            runs_dir,
            f"a run on {run.spec.gpu}",
            _share(run.forecast.worst_case_usd, run.forecast.least_usd, budget.max_usd_each),
            run.forecast.least_usd,
        )
        for run in paid
    ]
    made = reserve_asked(asks, budget, spent_usd, is_kept=is_kept)
    reserved = {reservation.run_id: reservation for reservation in made}
    return tuple(
        _with(run, reserved[run.spec.run_id], backend, is_capped=is_capped)
        if run.spec.run_id in reserved
        else run
        for run in runs
    )


def no_price(gpu: str | None, forecast: Forecast) -> BudgetError:
    """Return why a cap can't be kept on a GPU type."""
    return BudgetError(
        f"no price is known for {gpu} in the prices of {forecast.prices_of}, so a cap could not be "
        "kept; choose another GPU type, or go without max_cost and max_cost_per_day"
    )


def reserve_asked(
    asks: Sequence[Ask], budget: Budget, spent_usd: float = 0.0, *, is_kept: bool = True
) -> tuple[Reservation, ...]:
    """Reserve money from a budget and from the day's; without a cap, a ledger may be missing.

    Args:
        asks: What it is for.
        budget: What they share.
        spent_usd: What is known to be spent of it from other records.
        is_kept: Whether it is a reservation, or only the question whether there could be one.

    Raises:
        BudgetError: If a cap has no room for them, or it can't be known.
    """
    cap = Cap("the cap", budget.max_usd, "Raise --max-cost (in Python: max_cost=)", spent_usd)
    day_cap = Cap(
        "the day's cap",
        max_cost_per_day(),
        "Raise max_cost_per_day (ML_EXPERIMENTS_MAX_COST_PER_DAY), wait until 00:00 UTC",
    )
    try:
        return open_ledger().reserve(asks, budget.scope, cap, day_cap, is_kept=is_kept)
    except BudgetError as e:
        if budget.is_capped:
            raise
        logger.warning("what the run may cost is not reserved: %s", e)
        return ()


def _share(worst_usd: float, least_usd: float, max_usd: float | None) -> float:
    return worst_usd if max_usd is None else max(least_usd, min(worst_usd, max_usd))


def _with(
    run: PreparedRun, reservation: Reservation, backend: Backend, *, is_capped: bool
) -> PreparedRun:
    if is_capped:
        run = backend.limit_cost(run, reservation.usd)
    return dataclasses.replace(run, reservation=reservation)


def above_asking(run: PreparedRun, backend: Backend, runs_dir: Path) -> str | None:
    """Return what to ask before a run that may cost more than the setting `ask_above`; else None.

    Raises:
        BudgetError: If a cap has no room for it.
    """
    if ask_above() is None or run.forecast is None:
        return None
    [capped] = reserve([run], backend, runs_dir, is_kept=False)
    return above_limit(capped.forecast, "the run")


def above_limit(forecast: Forecast, what: str) -> str | None:
    """Return what to ask before something that may cost more than `ask_above`; else None."""
    limit, at_most_usd = ask_above(), forecast.all_attempts_usd
    if limit is None or (at_most_usd is not None and at_most_usd <= limit):
        return None
    if at_most_usd is None:
        return f"{forecast}: {what} may cost more than the {dollars(limit)} of ask_above"
    return f"{what} costs {forecast}, which is above the {dollars(limit)} of ask_above"


def refuse_above_asking(run: PreparedRun, backend: Backend, runs_dir: Path) -> None:
    """Refuse what had to be asked about.

    Raises:
        BudgetError: If it may cost more than the setting `ask_above`, or a cap has no room.
    """
    above = above_asking(run, backend, runs_dir)
    if above is not None:
        raise BudgetError(f"{above}, and nobody was asked; --yes starts it")


def describe_limit(asked: PreparedRun, reserved: PreparedRun) -> str | None:
    """Return what to say where a cap has shortened a run; None where it hasn't."""
    if asked.spec.timeout_s == reserved.spec.timeout_s:
        return None
    return (
        f"the timeout is {reserved.spec.timeout_s:g} s instead of {asked.spec.timeout_s:g} s, so "
        f"that the run costs no more than the {dollars(reserved.reservation.usd)} that is left "
        "for it"
    )


def settle_at_end(handle: RunHandle, reservation: Reservation | None) -> None:
    """Replace a reservation by what the run has cost, once it has ended."""
    if reservation is not None:
        handle.when_ended(lambda: _settle_quietly(reservation))


def release(reservation: Reservation | None) -> None:
    """Give a reservation back of a run that was not handed over."""
    if reservation is not None:
        _settle_quietly(reservation, 0.0)


def give_back_unstarted(folder: RunFolder) -> None:
    """Give back what was reserved for an attempt whose client died before it handed it over."""
    manifest = folder.read_manifest()
    if folder.result_file.exists() or manifest.is_on_modal:
        return
    _give_back(folder.path.name, manifest.attempt)
    if not manifest.earlier_attempts:
        _give_back(folder.path.name, ALL_ATTEMPTS)


def give_back_unstarted_sweep(sweep_dir: Path) -> None:
    """Give back what was reserved for a controller of a sweep that was never started."""
    if not has_spent(sweep_dir):
        _give_back(sweep_dir.name, ALL_ATTEMPTS)


def _give_back(run_id: str, attempt: int) -> None:
    if not open_ledger().file.exists():
        return
    try:
        open_ledger().give_back(run_id, attempt)
    except BudgetError as e:  # without a cap, it doesn't matter; with one, the next question fails
        logger.warning("what was reserved for %s stays so: %s", run_id, e)


def _settle_quietly(reservation: Reservation, spent_usd: float | None = None) -> None:
    if spent_usd is None:
        what = (reservation.runs_dir, reservation.run_id, reservation.attempt)
        spent_usd = read_spent(*what)
    if spent_usd is None:  # its outcome is not here: it counts as what was reserved for it
        return
    try:
        open_ledger().settle(reservation, spent_usd)
    except BudgetError as e:  # must not replace the result; the next reservation settles it
        logger.warning("what run %s has cost is not in the ledger: %s", reservation.run_id, e)


def record_bill(runs_dir: Path, run_id: str, usd: float) -> None:
    """Keep what Modal has billed for a run, in its folder and in the ledger.

    Raises:
        BudgetError: If the ledger can't be used.
        RunFolderError: If the run folder is not readable.
    """
    folder = RunFolder(runs_dir / run_id)
    result = folder.read_result()
    billed = dataclasses.replace(result, cost={**result.cost, "billed_usd": usd})
    with recorded(runs_dir, run_id):
        folder.write_result(billed, Redactor(()))
    open_ledger().correct(run_id, usd)


def read_spent(runs_dir: Path, run_id: str, attempt: int) -> float | None:
    """Return the most that an attempt at a run can have cost; None while that isn't known.

    It is no less than what Modal bills: an estimate would leave out the start of a container, and
    what is left out of each attempt would add up beyond the cap.
    """
    folder = RunFolder(runs_dir / run_id)
    try:
        if attempt == ALL_ATTEMPTS:
            return _read_spent_in_all(folder)
        manifest = folder.read_manifest()
        if manifest.attempt > attempt:
            costs = [a.at_most_usd for a in manifest.earlier_attempts if attempt == _submission(a)]
            return None if not costs or None in costs else sum(c or 0.0 for c in costs)
        if manifest.attempt < attempt or not folder.result_file.exists():
            return None
        result = folder.read_result()
    except RunFolderError:
        return None
    own = [a.at_most_usd for a in result.attempts if attempt == _submission(a)]
    own = own or [result.cost.get("at_most_usd")]
    if own == [None] and manifest.call_id is None:
        return 0.0  # it was never handed over
    return None if None in own else _amount(sum(usd or 0.0 for usd in own))


def _read_spent_in_all(folder: RunFolder) -> float | None:
    """Return what all attempts at a run, or all points of a sweep, can have cost at most.

    None while a container on Modal makes them, or what it has left did not come here.
    """
    sweep_dir = folder.path.parent / "sweeps" / folder.path.name
    if sweep_dir.is_dir():
        return _read_amount(sweep_dir / _SPENT_FILE)
    manifest = folder.read_manifest()
    attempts, own_usd = manifest.earlier_attempts, 0.0
    if folder.result_file.exists():
        result = folder.read_result()
        attempts = result.attempts or manifest.attempts(result)
        own_usd = result.cost.get("controller_usd", 0.0)
    elif manifest.controller is not None or not attempts:
        return None
    costs = [attempt.at_most_usd for attempt in attempts]
    return None if None in costs else _amount(sum(usd or 0.0 for usd in costs) + own_usd)


def note_spent(sweep_dir: Path, usd: float) -> None:
    """Keep what a sweep that was controlled elsewhere can have cost at most."""
    write_json_atomically(sweep_dir / _SPENT_FILE, {"usd": usd})


def has_spent(sweep_dir: Path) -> bool:
    """Return whether it is known what such a sweep has spent."""
    return _read_amount(sweep_dir / _SPENT_FILE) is not None


def forget_spent(sweep_dir: Path) -> None:
    """Forget what such a sweep has spent, once it is counted."""
    (sweep_dir / _SPENT_FILE).unlink(missing_ok=True)


def _read_amount(file: Path) -> float | None:
    try:
        return _amount(float(json.loads(file.read_text("utf-8"))["usd"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _amount(usd: float) -> float | None:
    """Return an amount; None for what is none, which was written by nobody here."""
    return usd if 0 <= usd <= MAX_USD else None


def _submission(attempt: Attempt) -> int:
    return attempt.number if attempt.submission is None else attempt.submission
