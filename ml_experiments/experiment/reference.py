"""From a class path to the class, and from a class to its path.

Three forms: `pkg.module.Class`, `pkg.module:Class` and `path/to/file.py:Class`. The last part
may also be a function.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_experiments.errors import ExperimentPathError

FORMS = "pkg.module.Class, pkg.module:Class or path/to/file.py:Class"


@dataclass(frozen=True)
class ExperimentPath:
    """A class path, taken apart.

    Attributes:
        module: Dotted name of the module.
        name: Name of the class or function in it; dotted when nested.
        file: The module's file, when the path named one.
        root: The folder that the module is imported from, when the path named a file.
    """

    module: str
    name: str
    file: Path | None = None
    root: Path | None = None


def parse_experiment_path(text: str) -> ExperimentPath:
    """Take a class path apart.

    Raises:
        ExperimentPathError: If it has none of the three forms, or its file doesn't exist.
    """
    location, colon, name = text.rpartition(":")
    if colon and location.endswith(".py"):
        return _in_file(text, Path(location), name)
    if text.endswith(".py"):
        raise ExperimentPathError(f"{text!r} names a file only; write {text}:Class")
    if not colon:
        location, _, name = text.rpartition(".")
    parts = [*location.split("."), *name.split(".")]
    if not location or not all(part.isidentifier() for part in parts):
        raise ExperimentPathError(f"{text!r} is not a class path; write {FORMS}")
    return ExperimentPath(module=location, name=name)


def _in_file(text: str, file: Path, name: str) -> ExperimentPath:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ExperimentPathError(f"{text!r} names no class; write {FORMS}")
    file = file.expanduser().resolve()
    if not file.is_file():
        raise ExperimentPathError(f"{file} does not exist")
    root, module = file.parent, file.stem
    while (root / "__init__.py").is_file() and root.parent != root:
        root, module = root.parent, f"{root.name}.{module}"
    return ExperimentPath(module=module, name=name, file=file, root=root)
