"""What a run needs on Modal, worked out on this machine before anything is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, GpuRequest, parse_gpu
from ml_experiments.backends.modal.preflight.conflicts import find_conflicts
from ml_experiments.backends.modal.preflight.import_graph import ImportClosure, walk_imports
from ml_experiments.backends.modal.preflight.packages import missing_packages, read_lock
from ml_experiments.backends.modal.preflight.requirements import parse_requirement
from ml_experiments.backends.modal.resources import LONGEST_TIMEOUT_S
from ml_experiments.errors import BackendError, PreflightError
from ml_experiments.experiment.reference import load_experiment, parse_experiment_path
from ml_experiments.runs.spec import RunSpec

DEFAULT_TIMEOUT_S = 4 * 3600


def list_of_texts(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return a list of texts; a single text would be taken for a list of its letters.

    Raises:
        BackendError: If it is anything else.
    """
    if isinstance(value, str):
        raise BackendError(f"{name} is {value!r}; write a list: {name}=[{value!r}]")
    if not isinstance(value, Sequence) or not all(isinstance(v, str) and v for v in value):
        raise BackendError(f"{name} is {value!r}; it must be a list of texts")
    return tuple(value)


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


def complete_spec(spec: RunSpec) -> RunSpec:
    """Return the spec with a GPU type and a timeout, which Modal needs, and check them.

    Raises:
        GpuTypeError: If the GPU type is not valid.
        BackendError: If the timeout is more than Modal allows.
    """
    timeout_s = DEFAULT_TIMEOUT_S if spec.timeout_s is None else spec.timeout_s
    if timeout_s > LONGEST_TIMEOUT_S:
        raise BackendError(
            f"the timeout is {timeout_s:g} s; Modal ends every call after 24 h "
            f"({LONGEST_TIMEOUT_S} s). Save checkpoints and resume the run instead"
        )
    return replace(spec, gpu=str(gpu_of(spec)), timeout_s=timeout_s)


def gpu_of(spec: RunSpec) -> GpuRequest:
    """Return the GPU request of a spec.

    Raises:
        GpuTypeError: If the GPU type is not valid.
    """
    # an empty text is a mistake, such as an unset shell variable
    return parse_gpu(DEFAULT_GPU_TYPE if spec.gpu is None else spec.gpu)


def modal_timeout_s(spec: RunSpec) -> int:
    """Return the timeout in Modal's unit, whole seconds, of a complete spec."""
    return math.ceil(spec.timeout_s or DEFAULT_TIMEOUT_S)


def requirements_of(spec: RunSpec) -> tuple[str, ...]:
    """Return what the experiment's own `requirements` attribute asks for.

    Raises:
        PreflightError: If it is not a list of requirements.
    """
    target: Callable[..., Any] = load_experiment(spec.experiment, spec.import_paths)
    found = getattr(target, "requirements", ())
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise PreflightError(
            f"{spec.experiment}: requirements is {found!r}; write a list such as ['timm>=1.0']"
        )
    for requirement in found:
        parse_requirement(requirement)
    return tuple(found)


def import_closure(spec: RunSpec) -> ImportClosure:
    """Return the user's own modules that the experiment needs, and all other imports."""
    parsed = parse_experiment_path(spec.experiment)
    paths = [parsed.root] if parsed.root else []
    return walk_imports(parsed.module, [*paths, *map(Path, spec.import_paths)])


def check_imports(closure: ImportClosure, additions: Sequence[Requirement]) -> None:
    """Make sure that a container could import all that the experiment imports.

    Raises:
        PreflightError: If not; it names every missing module and package, and the fix.
    """
    missing = missing_packages(closure.external, read_lock(), additions)
    problems = [*closure.problems, *map(str, missing)]
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
