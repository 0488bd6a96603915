"""What is reserved on this machine for a controller on Modal and all that it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_experiments.backends.forecast import Forecast, dollars
from ml_experiments.backends.modal.detached.containers import most_usd_per_s
from ml_experiments.backends.modal.plan import ContainerPlan
from ml_experiments.backends.modal.resources import MAX_TIMEOUT_S
from ml_experiments.runner.budget.ledger import Ask, Reservation
from ml_experiments.runner.budget.reserving import ALL_ATTEMPTS, Budget, no_price, reserve_asked

MIN_CONTROLLER_S = 600
# what Modal allows; a call that has lasted for 24 h is ended, and is one of them
MAX_CONTROLLER_RETRIES = 10


@dataclass(frozen=True)
class Allowance:
    """What is reserved here for a controller on Modal and all that it starts.

    Attributes:
        reservation: In the ledger of this machine; None where no price is known.
        runs_usd: What the runs may cost together; None without a cap.
        own_s: For how many seconds the controller itself may be there; None without a cap.
    """

    reservation: Reservation | None
    runs_usd: float | None = None
    own_s: float | None = None

    def calls(self, retries: int) -> dict[str, int]:
        """Return the timeout of a call of the controller, and how often it is made again at most.

        Args:
            retries: How often it would be without a cap.
        """
        if self.own_s is None:
            return {"timeout_s": MAX_TIMEOUT_S, "retries": retries}
        retries = min(retries, max(0, int(self.own_s / MIN_CONTROLLER_S) - 1))
        return {
            "timeout_s": min(MAX_TIMEOUT_S, int(self.own_s / (1 + retries))),
            "retries": retries,
        }

    def __str__(self) -> str:
        usd = 0.0 if self.reservation is None else self.reservation.usd
        return f"{dollars(usd)} of the cap is reserved until its outcome is here"


def reserve_all(
    name: str, budget: Budget, forecast: Forecast | None, plan: ContainerPlan, runs_dir: Path
) -> Allowance:
    """Reserve what all attempts at a run or all points of a sweep may cost, and their controller.

    The controller takes part in that: by as much of it as its seconds cost if all runs, one after
    the other, use up the rest.

    Args:
        name: The id of the run or the sweep.
        budget: Its cap.
        forecast: What all of it is going to cost.
        plan: The container of the first run.
        runs_dir: Where the outcome is going to be.

    Raises:
        BudgetError: If a cap has no room for it.
    """
    if forecast is None or forecast.worst_case_usd is None or forecast.least_usd is None:
        if budget.is_capped and forecast is not None:
            raise no_price(str(plan.gpu), forecast)
        return Allowance(None)
    own_usd_per_s = most_usd_per_s()
    share = own_usd_per_s / plan.cheapest_usd_per_s
    idle_usd = own_usd_per_s * MIN_CONTROLLER_S
    runs_usd = forecast.all_attempts_usd or forecast.worst_case_usd * forecast.attempts
    runs_usd = max(runs_usd, forecast.least_usd)  # which a cap may be too low for
    ask = Ask(
        name,
        ALL_ATTEMPTS,
        runs_dir,
        f"what runs on {plan.gpu}, controlled on Modal,",
        runs_usd * (1 + share) + idle_usd,
        forecast.least_usd * (1 + share) + idle_usd,
    )
    reserved = reserve_asked([ask], budget)
    if not budget.is_capped:
        return Allowance(reserved[0] if reserved else None)
    [reservation] = reserved
    runs_usd = (reservation.usd - idle_usd) / (1 + share)
    return Allowance(reservation, runs_usd, (reservation.usd - runs_usd) / own_usd_per_s)
