"""The options of a bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc, TypedDict

from ml_experiments.runner.options import MAX_NODES, MAX_PROCESSES, MAX_SEED
from ml_experiments.settings import MAX_USD

MAX_REPEAT = 10_000


class BenchOptions(TypedDict, total=False):
    """What can be asked of a bench besides its experiment, config and values to vary."""

    gpu: Annotated[
        str | None, Doc("GPU types on Modal to compare: t4,l4,h100:2. Without, this machine is.")
    ]
    repeat: Annotated[
        int | None,
        Ge(1),
        Le(MAX_REPEAT),
        Doc("Measured runs of each case, after one that warms up; 3 by default."),
    ]
    per: Annotated[
        str | None,
        Doc("What one run puts out, such as results.num_images: a number, or a list to count."),
    ]
    latency: Annotated[
        str | None,
        Doc("Show the percentiles of this logged metric instead of those of run()'s seconds."),
    ]
    launch: Annotated[
        Literal["torchrun", "accelerate"] | None,
        Doc("Start one process for each GPU, with torch's or Accelerate's launcher, for each run."),
    ]
    nproc_per_node: Annotated[
        int | None,
        Ge(1),
        Le(MAX_PROCESSES),
        Doc("With launch: how many processes; by default one for each GPU."),
    ]
    nodes: Annotated[
        int | None,
        Ge(1),
        Le(MAX_NODES),
        Doc("With launch, on Modal: how many machines, each with all that is asked for."),
    ]
    timeout_s: Annotated[
        float | None, Gt(0), Le(24 * 3600), Doc("End each run after this time; 1h by default.")
    ]
    seed: Annotated[int | None, Ge(0), Le(MAX_SEED), Doc("The seed of all runs.")]
    name: Annotated[str | None, Doc("What the bench is called, and its runs in lists.")]
    tags: Annotated[Mapping[str, str] | None, Doc("Recorded with each run.")]
    max_cost: Annotated[
        float | None,
        Gt(0),
        Le(MAX_USD),
        Doc("US dollars that all runs may cost on Modal in all, with what resumes the bench."),
    ]
