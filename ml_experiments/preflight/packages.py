"""Which packages an experiment imports that its container would not have."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ml_experiments.errors import PreflightError
from ml_experiments.experiment_path import pip_name
from ml_experiments.preflight.imports import Import

LOCK_FILE = Path(__file__).parent.parent / "gpu_image" / "requirements-gpu.lock"
INPUT_FILE = LOCK_FILE.with_suffix(".in")


@dataclass(frozen=True)
class MissingPackage:
    """A package that is imported and that the container would not have.

    Attributes:
        distribution: What to install; a guess from the import's name unless it is
            installed here.
        found: The import that needs it.
    """

    distribution: str
    found: Import

    def __str__(self) -> str:
        return (
            f"{self.found.place} imports {self.found.module}: the image has no package "
            f"{self.distribution!r}; add it with --pip {self.distribution}"
        )


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


def read_requirements(file: Path) -> tuple[str, ...]:
    """Return the requirements of a requirements file, as they stand in it.

    Raises:
        PreflightError: If the file isn't readable, or a line is not a requirement.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise PreflightError(f"requirements file {str(file)!r} is not readable: {e}") from e
    texts = (re.split(r"(?:^|\s)#", line)[0].strip() for line in lines)
    requirements = tuple(text for text in texts if text)
    for requirement in requirements:
        requirement_name(requirement)
    return requirements


def requirement_name(requirement: str) -> str:
    """Return the normalized name of the package that a requirement such as `timm>=1` asks for.

    Raises:
        PreflightError: If it is not a requirement of PEP 508.
    """
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement as e:
        raise PreflightError(
            f"{requirement!r} is not a requirement such as timm, timm>=1.0 or "
            f"'name @ https://…': {str(e).splitlines()[0]}"
        ) from e


def missing_packages(
    external: Iterable[Import], lock: Mapping[str, str], requirements: Iterable[str] = ()
) -> tuple[MissingPackage, ...]:
    """Return each package that is imported and neither in the lock nor in the requirements."""
    present = {*lock, *(requirement_name(r) for r in requirements)}
    installed: Mapping[str, list[str]] | None = None
    missing = []
    for found in external:
        if found.optional:
            continue
        guess = canonicalize_name(pip_name(found.module))
        if guess in present:
            continue
        if installed is None:  # slow: reads the metadata of each package
            installed = importlib.metadata.packages_distributions()
        known = _providers(found, installed)
        if known and not known.isdisjoint(present):
            continue
        missing.append(MissingPackage(min(known, default=guess), found))
    return tuple(missing)


def _providers(found: Import, installed: Mapping[str, list[str]]) -> set[str]:
    """Return the installed packages that hold the imported module."""
    names = set(installed.get(found.module.partition(".")[0], ()))
    if len(names) > 1:  # a namespace such as `google`, shared by several packages
        names = {name for name in names if _holds(name, found)} or names
    return {canonicalize_name(name) for name in names}


def _holds(distribution: str, found: Import) -> bool:
    folders = [found.module.replace(".", "/")]
    folders += [f"{folders[0]}/{name}" for name in found.names]
    # the longest name decides: `from google.cloud import storage` needs google/cloud/storage
    files = {str(f) for f in importlib.metadata.files(distribution) or ()}
    deepest = folders[1:] or folders
    return any(f"{d}.py" in files or f"{d}/__init__.py" in files for d in deepest)
