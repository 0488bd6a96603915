"""What a run on Modal is going to cost: from this experiment's earlier runs, or its timeout."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import logging
import statistics

from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.modal.billing.prices import current_prices, next_choice
from ml_experiments.backends.modal.gpus import GpuChoice, GpuRequest
from ml_experiments.backends.modal.plan import ContainerPlan
from ml_experiments.errors import RunFolderError, UnknownPriceError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import runs_dir

_MAX_EARLIER_RUNS = 50

logger = logging.getLogger(__name__)


def make_forecast(
    plan: ContainerPlan, earlier_s: list[float], spec: RunSpec | None = None
) -> Forecast:
    """Return what a run in such a container is going to cost.

    The estimate counts as `cost_of` does afterwards: the seconds of the run at the price of the
    GPUs and of the CPU and memory that are reserved.

    Args:
        plan: The container.
        earlier_s: How long runs of the same experiment took there.
        spec: What to run; it says how many attempts there may be.
    """
    found = current_prices()
    prices = (found.date, found.source)
    try:
        price, least_usd = plan.reserved_usd_per_s, plan.least_usd
    except UnknownPriceError:
        return Forecast(None, None, None, *prices)
    worst_case_usd = plan.worst_case_usd
    attempts, all_usd = (1, worst_case_usd) if spec is None else all_attempts(plan, spec)
    if spec is not None and spec.max_cost is not None and all_usd is not None:
        all_usd = min(all_usd, spec.max_cost)
    whole = Forecast(
        price * plan.timeout_s,
        worst_case_usd,
        least_usd,
        *prices,
        attempts=attempts,
        all_attempts_usd=all_usd,
    )
    if not earlier_s:
        return whole
    return dataclasses.replace(
        whole,
        estimate_usd=price * statistics.median(earlier_s),
        low_usd=price * min(earlier_s),
        high_usd=price * max(earlier_s),
        earlier_runs=len(earlier_s),
    )


def all_attempts(plan: ContainerPlan, spec: RunSpec) -> tuple[int, float | None]:
    """Return how many attempts there may be, and the most that all can cost together.

    A run climbs the ladder of its GPU types once; each retry may be on the dearest of them. What
    Modal preempts is not counted: it goes on within the same timeout where there is a cap.
    """
    found = [_on_ladder(plan, choice, spec) for choice in plan.gpu.choices]
    counts = [1 + len(ladder) + spec.retries for ladder in found]
    totals: list[float] = []
    for ladder in found:
        amounts = [plan.worst_case_usd, *(rung.worst_case_usd for rung in ladder)]
        known = [usd for usd in amounts if usd is not None]
        if len(known) < len(amounts):
            return max(counts), None
        totals.append(sum(known) + spec.retries * max(known))
    return max(counts), max(totals)


def _on_ladder(plan: ContainerPlan, choice: GpuChoice, spec: RunSpec) -> list[ContainerPlan]:
    """Return the containers that a run may climb to after one with this GPU."""
    found, ran = [], choice
    while spec.escalate is not None and (larger := next_choice(ran, spec.escalate)) is not None:
        found.append(plan.on(GpuRequest((larger,)), spec))
        ran = larger
    return found


def earlier_seconds(experiment: str, gpu: str, nodes: int = 1) -> list[float]:
    """Return how long the latest successful runs of an experiment took on a GPU type.

    Args:
        experiment: Its path, as run specs have it.
        gpu: What was asked for, as run specs have it.
        nodes: On how many machines at once.
    """
    folder = runs_dir()
    run_filter = RunFilter(
        status=("success",),
        experiment=glob.escape(experiment),
        gpu=glob.escape(gpu),
        backend="modal",
    )
    try:
        rows = RunRegistry(folder).rows(_MAX_EARLIER_RUNS, run_filter)
    except RunFolderError as e:
        logger.warning("earlier runs can't be read, so the estimate is from the timeout: %s", e)
        return []
    found = []
    for row in rows:
        # the filter takes the end of a path for the whole
        if row.experiment == experiment and row.seconds:
            with contextlib.suppress(RunFolderError):  # a damaged one
                if RunFolder(folder / row.run_id).read_spec().nodes == nodes:
                    found.append(row.seconds)
    return found
