"""Which packages an experiment imports that its container would not have."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ml_experiments.backends.modal import gpu_image
from ml_experiments.backends.modal.preflight.imports import Import
from ml_experiments.backends.modal.preflight.installed import InstalledPackages
from ml_experiments.backends.modal.preflight.namespaces import (
    guess_distribution,
    is_known_namespace,
)
from ml_experiments.backends.modal.preflight.requirements import is_for_container
from ml_experiments.errors import PreflightError
from ml_experiments.experiment.pip_names import pip_name

LOCK_FILE = Path(gpu_image.__path__[0]) / "requirements-gpu.lock"
INPUT_FILE = LOCK_FILE.with_suffix(".in")


@dataclass(frozen=True)
class MissingPackage:
    """A package that is imported and that the container would not have.

    Attributes:
        distribution: What to install.
        module: What is imported of it.
        found: The import that needs it.
        guessed: Whether the name is made up from that of a module in a namespace.
    """

    distribution: str
    module: str
    found: Import
    guessed: bool = False

    def __str__(self) -> str:
        text = (
            f"{self.found.place} imports {self.module}: the image has no package "
            f"{self.distribution!r}; add it with --pip {self.distribution}"
        )
        if self.guessed:
            text += (
                " (its name is a guess from that of the module; where the package is installed, "
                "it is looked up)"
            )
        return text


@functools.cache  # a package's file stays as it is
def read_lock(file: Path = LOCK_FILE) -> dict[str, str]:
    """Return the pinned version of each package, by its normalized name.

    Raises:
        PreflightError: If a line is not `name==version`.
    """
    versions: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].partition(";")[0].strip()
        if not text:
            continue
        name, separator, version = text.partition("==")
        if not separator:
            raise PreflightError(f"{file}: {text!r} is not of the form name==version")
        versions[canonicalize_name(name.strip())] = version.strip()
    return versions


def missing_packages(
    external: Iterable[Import], lock: Mapping[str, str], requirements: Iterable[Requirement] = ()
) -> tuple[MissingPackage, ...]:
    """Return each package that is imported and neither in the lock nor in the requirements."""
    present = {*lock, *(canonicalize_name(r.name) for r in requirements if is_for_container(r))}
    installed = InstalledPackages()
    missing: dict[str, MissingPackage] = {}
    for found in external:
        if found.optional:
            continue
        top = found.module.partition(".")[0]
        # the quick way, without reading what is installed, for nearly all imports
        if not is_known_namespace(top) and canonicalize_name(pip_name(top)) in present:
            continue
        for module in installed.modules_of(found):
            package = _missing(module, found, installed, present)
            if package is not None:
                missing.setdefault(package.distribution, package)
    return tuple(missing.values())


def _missing(
    module: str, found: Import, installed: InstalledPackages, present: set[str]
) -> MissingPackage | None:
    owners = installed.owners_of(module)
    if owners:
        return None if owners & present else MissingPackage(min(owners), module, found)
    guess = guess_distribution(module, installed.is_namespace)
    # nvidia.cudnn comes with nvidia-cudnn-cu13
    if any(name == guess or name.startswith(f"{guess}-cu") for name in present):
        return None
    guessed = installed.is_namespace(module.partition(".")[0])
    return MissingPackage(guess, module, found, guessed)
