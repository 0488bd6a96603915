"""The options of a sweep."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc, TypedDict


class SweepOptions(TypedDict, total=False):
    """What can be asked of a sweep besides its space and the options of its runs."""

    parallel: Annotated[
        int | None,
        Ge(1),
        Doc(
            "How many points run at a time; by default one for each GPU here, 8 on Modal and Slurm."
        ),
    ]
    sampler: Annotated[
        str | None,
        Doc("grid (all points), random, tpe, gp, cmaes, nsga2 or qmc: see --trials."),
    ]
    trials: Annotated[int | None, Ge(1), Doc("How many points a sampler suggests.")]
    maximize: Annotated[str | None, Doc("The result to compare, such as results.accuracy.")]
    minimize: Annotated[str | None, Doc("The same, where less is better.")]
    batch: Annotated[
        int | None,
        Ge(1),
        Doc("Suggest so many points together; they depend on no number of workers then."),
    ]
    pruner: Annotated[
        str | None,
        Doc("End poor points early: median, percentile, halving, hyperband or wilcoxon."),
    ]
    metric: Annotated[str | None, Doc("The logged metric that the pruner compares, such as loss.")]
    min_steps: Annotated[
        int | None, Ge(1), Doc("How many steps each point gets before a pruner may end it.")
    ]
    fail_fast: Annotated[bool, Doc("End the sweep at the first point that fails.")]
