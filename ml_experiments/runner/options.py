"""The options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc, TypedDict

from ml_experiments.settings import MAX_USD

MAX_SEED = 2**63 - 1  # what torch accepts
MAX_RETRIES = 1000
MAX_PROCESSES = 256
MAX_NODES = 32  # of a cluster on Modal
MAX_TIMEOUT_S = 10 * 365 * 24 * 3600  # far above it, timers of the system overflow


class RunOptions(TypedDict, total=False):
    """What can be asked of a run besides its experiment and config; None means not given."""

    gpu: Annotated[
        str | None,
        Doc(
            "GPU type on Modal: a10g, h100:2, or h100,a100-80gb as a fallback. On Slurm, a name of "
            "the cluster's."
        ),
    ]
    launch: Annotated[
        Literal["torchrun", "accelerate"] | None,
        Doc("Start one process for each GPU, with torch's or Accelerate's launcher."),
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
        float | None,
        Gt(0),
        Le(MAX_TIMEOUT_S),
        Doc("End the run after this time; it may save what it has before."),
    ]
    seed: Annotated[
        int | None,
        Ge(0),
        Le(MAX_SEED),
        Doc("Seed of random, numpy and torch; drawn and recorded when not given."),
    ]
    retries: Annotated[
        int | None,
        Ge(0),
        Le(MAX_RETRIES),
        Doc("Try again so often after a lost machine or process, or a timeout with progress."),
    ]
    escalate: Annotated[
        str | bool | None,
        Doc(
            "After CUDA out of memory, go on with the next larger GPU type, the cheapest first, or "
            "with these in order: a100-80gb,h100."
        ),
    ]
    escalate_to: Annotated[
        str | None,
        Doc("After out of memory on this machine, go on on Modal with this GPU type."),
    ]
    name: Annotated[str | None, Doc("What the run is called in lists.")]
    tags: Annotated[Mapping[str, str] | None, Doc("Recorded with the run.")]
    max_cost: Annotated[
        float | None,
        Gt(0),
        Le(MAX_USD),
        Doc("US dollars that the run may cost on Modal in all, with what resumes it."),
    ]
    notify: Annotated[str | None, Doc("Post the result to this URL, as JSON, when the run ends.")]
    reuse: Annotated[
        bool,
        Doc(
            "Return an earlier run that succeeded with the same source, config, seed, packages and "
            "models, and start nothing."
        ),
    ]
    run_id: Annotated[
        str | None,
        Doc("Run once under this id: if there is such a run, it is followed, and none started."),
    ]
    prefetch: Annotated[bool, Doc("Download the models that the config names first.")]


def as_recorded(backend_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a backend as the record of a sweep or a bench has them."""
    given = backend_options or {}
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
