"""Checks what a run with a launcher needs, before anything is started."""

from __future__ import annotations

import dataclasses
import importlib.util

from ml_experiments.errors import ConfigError, PreflightError
from ml_experiments.runs.spec import PreparedRun

# launcher -> the packages that it takes
PACKAGES = {"torchrun": ("torch",), "accelerate": ("accelerate", "torch")}


def with_processes(run: PreparedRun, gpu_count: int) -> PreparedRun:
    """Return a run with the number of processes that its launcher starts; others as they are.

    Its ranks are new processes for each run, so no set-up is kept.

    Args:
        run: The run.
        gpu_count: How many GPUs it has; 0 where it computes on the CPU.

    Raises:
        ConfigError: If the number isn't known, or is greater than that of the GPUs.
    """
    launch, count = run.spec.launch, run.spec.nproc_per_node
    if launch is None:
        if count is None:
            return run
        raise ConfigError(
            f"nproc_per_node={count} is the number of processes that a launcher starts; add "
            "launch='torchrun' or launch='accelerate'"
        )
    if count is None and gpu_count == 0:
        raise ConfigError(
            f"launch={launch!r} starts one process for each GPU, and there is none; say how many "
            "processes shall compute on the CPU: nproc_per_node=2"
        )
    if count is not None and count > gpu_count > 0:
        raise ConfigError(
            f"nproc_per_node={count} asks for more processes than there are GPUs ({gpu_count}); "
            "each process has a GPU of its own"
        )
    spec = dataclasses.replace(run.spec, nproc_per_node=count or gpu_count)
    return dataclasses.replace(run, spec=spec, setup_key=None)


def check_nodes(nodes: int, launch: str | None, backend: str) -> None:
    """Make sure that a backend can run on so many machines at once.

    Raises:
        ConfigError: If it can't.
    """
    if nodes == 1:
        return
    if backend != "modal":
        raise ConfigError(
            f"nodes={nodes} is for a run on Modal, whose functions can have several machines; on "
            f"the {backend} backend, a run has one: leave nodes out"
        )
    if launch is None:
        raise ConfigError(
            f"nodes={nodes} starts a launcher on each machine; say which one: launch='torchrun' or "
            "launch='accelerate'"
        )


def check_packages(launch: str | None) -> None:
    """Make sure that a launcher is installed where this process is.

    Raises:
        PreflightError: If it isn't.
    """
    missing = [p for p in PACKAGES.get(launch or "", ()) if importlib.util.find_spec(p) is None]
    if missing:
        raise PreflightError(
            f"launch={launch!r} needs {' and '.join(missing)}, not installed here; "
            f"pip install {' '.join(missing)}"
        )
