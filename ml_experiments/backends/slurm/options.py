"""The options of the Slurm backend; imports nothing of submitit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc, TypedDict


class SlurmOptions(TypedDict, total=False):
    """What can be asked of the Slurm backend: `SlurmBackend(partition="gpu", account="vision")`."""

    partition: Annotated[str | None, Doc("Partition, or several as in a,b.")]
    account: Annotated[str | None, Doc("Account that the job is charged to.")]
    qos: Annotated[str | None, Doc("Quality of service.")]
    constraint: Annotated[str | None, Doc("Features that the node must have.")]
    reservation: Annotated[str | None, Doc("Reservation to use.")]
    nodelist: Annotated[str | None, Doc("Nodes to use.")]
    exclude: Annotated[str | None, Doc("Nodes not to use.")]
    cpus_per_task: Annotated[int | None, Ge(1), Doc("CPU cores.")]
    memory_gib: Annotated[float | None, Gt(0), Lt(math.inf), Doc("Memory, in GiB.")]
    setup: Annotated[Sequence[str], Doc("Shell lines before the run: module load cuda.")]
    sbatch: Annotated[
        Mapping[str, str], Doc("Other options of sbatch, without dashes: begin, comment, licenses.")
    ]
    signal_delay_s: Annotated[
        int | None, Ge(1), Doc("How long before its limit a job is told to save; 90 by default.")
    ]
    cluster: Annotated[
        Literal["slurm", "local"] | None,
        Doc("local starts the jobs on this machine, to try them without Slurm."),
    ]
