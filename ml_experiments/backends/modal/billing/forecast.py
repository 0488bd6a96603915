"""What a run on Modal is going to cost: from this experiment's earlier runs, or its timeout."""

from __future__ import annotations

import glob
import logging
import statistics

from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.modal.billing.prices import PRICES_CHECKED, PRICES_SOURCE
from ml_experiments.backends.modal.plan import ContainerPlan
from ml_experiments.errors import RunFolderError, UnknownPriceError
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.settings import runs_dir

_MAX_EARLIER_RUNS = 50

logger = logging.getLogger(__name__)


def make_forecast(plan: ContainerPlan, earlier_s: list[float]) -> Forecast:
    """Return what a run in such a container is going to cost.

    The estimate counts as `cost_of` does afterwards: the seconds of the run at the price of the
    GPUs and of the CPU and memory that are reserved.

    Args:
        plan: The container.
        earlier_s: How long runs of the same experiment took there.
    """
    prices = (PRICES_CHECKED.isoformat(), PRICES_SOURCE)
    try:
        price, least_usd = plan.reserved_usd_per_s, plan.least_usd
    except UnknownPriceError:
        return Forecast(None, None, None, *prices)
    worst_case_usd = plan.worst_case_usd
    if not earlier_s:
        return Forecast(price * plan.timeout_s, worst_case_usd, least_usd, *prices)
    return Forecast(
        price * statistics.median(earlier_s),
        worst_case_usd,
        least_usd,
        *prices,
        low_usd=price * min(earlier_s),
        high_usd=price * max(earlier_s),
        earlier_runs=len(earlier_s),
    )


def earlier_seconds(experiment: str, gpu: str) -> list[float]:
    """Return how long the latest successful runs of an experiment took on a GPU type.

    Args:
        experiment: Its path, as run specs have it.
        gpu: What was asked for, as run specs have it.
    """
    run_filter = RunFilter(
        status=("success",),
        experiment=glob.escape(experiment),
        gpu=glob.escape(gpu),
        backend="modal",
    )
    try:
        rows = RunRegistry(runs_dir()).rows(_MAX_EARLIER_RUNS, run_filter)
    except RunFolderError as e:
        logger.warning("earlier runs can't be read, so the estimate is from the timeout: %s", e)
        return []
    # the filter takes the end of a path for the whole
    return [row.seconds for row in rows if row.experiment == experiment and row.seconds]
