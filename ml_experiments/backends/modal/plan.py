"""What a run needs on Modal, worked out on this machine before anything is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from ml_experiments.backends.modal.billing.prices import (
    container_usd_per_s,
    dearest_usd_per_s,
    next_choice,
)
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, GpuChoice, GpuRequest, parse_gpu
from ml_experiments.backends.modal.preflight.conflicts import find_conflicts
from ml_experiments.backends.modal.preflight.import_graph import ImportGraph, walk_imports
from ml_experiments.backends.modal.preflight.packages import missing_packages, read_lock
from ml_experiments.backends.modal.preflight.requirements import parse_requirement
from ml_experiments.backends.modal.resources import MAX_TIMEOUT_S, HostResources, host_resources
from ml_experiments.errors import BackendError, PreflightError, UnknownPriceError
from ml_experiments.experiment.reference import parse_experiment_path
from ml_experiments.runs.manifest import ModalPlace
from ml_experiments.runs.spec import RunSpec

DEFAULT_TIMEOUT_S = 4 * 3600
# importing this package and the experiment's Python files, on a cold container
STARTUP_TIMEOUT_S = 600
# how long a container waits for another run before it ends, which is paid for
IDLE_S = 60
# less time than this for the start is what a container with a large image may not manage
MIN_STARTUP_S = 60
MIN_RUN_S = 60


@dataclass(frozen=True)
class ContainerPlan:
    """The container of one run: what preflight checked is what is built, shipped and paid for.

    Attributes:
        gpu: The GPUs, or the alternatives in order of preference.
        timeout_s: Modal's timeout of the function, in whole seconds.
        resources: CPU and memory.
        pip: Requirements to add to the image.
        imports: The experiment's own modules, and all other imports.
        startup_timeout_s: Modal's limit for the start of the container.
        nodes: How many such containers the run has at once.
        is_capped: Whether the timeout is for all reruns together, because a cap depends on it.
    """

    gpu: GpuRequest
    timeout_s: int
    resources: HostResources
    pip: tuple[str, ...]
    imports: ImportGraph
    startup_timeout_s: int = STARTUP_TIMEOUT_S
    nodes: int = 1
    is_capped: bool = False

    @property
    def worst_case_usd(self) -> float | None:
        """The most that one attempt can cost, in US dollars; None where no price is known.

        It is the dearest of the choices, with the limits of CPU and memory used up, for a start
        and a run that take all of their timeouts, and for the wait of the warm container after.
        """
        try:
            seconds = self.startup_timeout_s + self.timeout_s + IDLE_S
            return self._max_usd_per_s * seconds
        except UnknownPriceError:
            return None

    @property
    def _max_usd_per_s(self) -> float:
        limit = self.resources
        price = dearest_usd_per_s(self.gpu, limit.cpu_cores[1], limit.max_memory_gib)
        return price * self.nodes

    @property
    def reserved_usd_per_s(self) -> float:
        """The price for one second of the GPUs, CPU and memory that are reserved on all machines.

        Raises:
            UnknownPriceError: If no price is known.
        """
        return max(self._reserved_prices())

    @property
    def cheapest_usd_per_s(self) -> float:
        """The price for one second of what is reserved, with the cheapest of the choices.

        Raises:
            UnknownPriceError: If no price is known.
        """
        return min(self._reserved_prices())

    def _reserved_prices(self) -> list[float]:
        cores, gib = self.resources.cpu_cores[0], self.resources.memory_mib[0] / 1024
        return [container_usd_per_s(c, cores, gib) * self.nodes for c in self.gpu.choices]

    @property
    def least_usd(self) -> float:
        """What a run can't do without: the shortest start, and a minute.

        Raises:
            UnknownPriceError: If no price is known.
        """
        run_s = min(self.timeout_s, MIN_RUN_S)
        return self._max_usd_per_s * (MIN_STARTUP_S + run_s + IDLE_S)

    def limited_to(self, max_usd: float) -> ContainerPlan:
        """Return the plan with timeouts such that it costs no more, whatever becomes of the client.

        Raises:
            UnknownPriceError: If no price is known.
        """
        seconds = max_usd / self._max_usd_per_s * (1 + 1e-9) - IDLE_S
        # a run that has to be short leaves a quarter of the time to its start
        startup_s = max(int(seconds - self.timeout_s), int(seconds / 4))
        startup_s = max(MIN_STARTUP_S, min(STARTUP_TIMEOUT_S, startup_s))
        return dataclasses.replace(
            self,
            startup_timeout_s=startup_s,
            timeout_s=max(1, min(self.timeout_s, int(seconds - startup_s))),
            is_capped=True,
        )

    def on(self, gpu: GpuRequest, spec: RunSpec) -> ContainerPlan:
        """Return the plan for the same run on another GPU."""
        return dataclasses.replace(self, gpu=gpu, resources=_resources(gpu, spec))

    @property
    def place(self) -> ModalPlace:
        """What the manifest records of the container."""
        return ModalPlace(
            gpu=self.gpu.modal,
            cpu_cores=self.resources.cpu_cores,
            memory_mib=self.resources.memory_mib,
            worst_case_usd=self.worst_case_usd,
            nodes=self.nodes if self.nodes > 1 else None,
        )


def plan_container(spec: RunSpec, pip: Sequence[str]) -> ContainerPlan:
    """Return the container for a run, once everything that is known here has been checked.

    Args:
        spec: What to run, with the options of the backend.
        pip: Requirements to add to the image.

    Raises:
        GpuTypeError: If the GPU type is not valid.
        BackendError: If the timeout, CPU, memory or number of machines is not.
        PreflightError: If the experiment would not import there.
    """
    timeout_s = DEFAULT_TIMEOUT_S if spec.timeout_s is None else spec.timeout_s
    if timeout_s > MAX_TIMEOUT_S:
        raise BackendError(
            f"the timeout is {timeout_s:g} s; Modal ends every call after 24 h "
            f"({MAX_TIMEOUT_S} s). Save checkpoints and resume the run instead"
        )
    # an empty string is a mistake, such as an unset shell variable
    gpu = parse_gpu(DEFAULT_GPU_TYPE if spec.gpu is None else spec.gpu)
    _check_whole_machines(gpu, spec)
    plan = ContainerPlan(
        gpu=gpu,
        timeout_s=math.ceil(timeout_s),
        resources=_resources(gpu, spec),
        pip=tuple(pip),
        imports=_import_graph(spec),
        nodes=spec.nodes,
    )
    _check_imports(plan.imports, check_additions(plan.pip))
    return plan


def _check_whole_machines(gpu: GpuRequest, spec: RunSpec) -> None:
    """Make sure that a run on several machines takes each of them whole, as Modal demands.

    Raises:
        BackendError: If not, at the start or after an escalation.
    """
    for choice in gpu.choices if spec.nodes > 1 else ():
        rung: GpuChoice | None = choice
        while rung is not None:
            if rung.count < rung.gpu.max_count:
                raise BackendError(
                    f"with nodes={spec.nodes}, Modal gives whole machines only, and {str(rung)!r} "
                    f"is a part of one; ask for {rung.gpu.key}:{rung.gpu.max_count}"
                )
            rung = None if spec.escalate is None else next_choice(rung, spec.escalate)


def _resources(gpu: GpuRequest, spec: RunSpec) -> HostResources:
    options = spec.backend_options
    return host_resources(gpu, options.get("cpu"), options.get("memory_gib"))


def complete_spec(spec: RunSpec, plan: ContainerPlan) -> RunSpec:
    """Return the spec with the GPU type and the timeout that the run will have."""
    asked_s = DEFAULT_TIMEOUT_S if spec.timeout_s is None else spec.timeout_s
    timeout_s = min(asked_s, plan.timeout_s) if plan.is_capped else asked_s
    return dataclasses.replace(
        spec,
        gpu=str(plan.gpu),
        timeout_s=timeout_s,
        asked_timeout_s=asked_s if timeout_s < asked_s else None,
    )


def check_additions(pip: Sequence[str]) -> tuple[Requirement, ...]:
    """Return the packages that the image needs besides the locked ones, such as `timm>=1.0`.

    Raises:
        PreflightError: If one is not a requirement, or the image could not be built with them.
    """
    requirements = tuple(map(parse_requirement, pip))
    conflicts = find_conflicts(requirements, read_lock())
    if conflicts:
        lines = "\n".join(f"  {conflict}" for conflict in conflicts)
        raise PreflightError(f"the packages to add could not be installed on Modal:\n{lines}")
    return requirements


def _import_graph(spec: RunSpec) -> ImportGraph:
    """Return the user's own modules that the experiment needs, and all other imports."""
    parsed = parse_experiment_path(spec.experiment)
    paths = [parsed.root] if parsed.root else []
    return walk_imports(parsed.module, [*paths, *map(Path, spec.import_paths)])


def _check_imports(graph: ImportGraph, additions: Sequence[Requirement]) -> None:
    """Make sure that a container could import all that the experiment imports.

    Raises:
        PreflightError: If not; it names every missing module and package, and the fix.
    """
    missing = missing_packages(graph.external, read_lock(), additions)
    problems = [*graph.problems, *map(str, missing)]
    if not problems:
        return
    lines = "\n".join(f"  {problem}" for problem in problems)
    hint = ""
    if missing:
        names = sorted({package.distribution for package in missing})
        hint = (
            f"\nadd all with: {' '.join(f'--pip {name}' for name in names)}\n"
            f"or on the class: requirements = {names}\n"
            "or list them in a file for --requirements; an import that may fail belongs in "
            "try/except ImportError"
        )
    raise PreflightError(f"the experiment would not import on Modal:\n{lines}{hint}")


def remote_path(experiment: str) -> str:
    """Return the class path below the folder in which a container has the user's modules."""
    parsed = parse_experiment_path(experiment)
    if parsed.file is None:
        return f"{parsed.module}:{parsed.name}"
    # as a file: its name may be that of another module, such as random.py
    return f"{parsed.module.replace('.', '/')}.py:{parsed.name}"
