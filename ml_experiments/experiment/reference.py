"""The import path of an experiment, and its parts.

It has one of three forms: `pkg.module.Class`, `pkg.module:Class` or `path/to/file.py:Class`. The
last part may also be a function.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.errors import ExperimentPathError
from ml_experiments.settings import working_dir

FORMS = "pkg.module.Class, pkg.module:Class or path/to/file.py:Class"


@dataclass(frozen=True)
class ExperimentPath:
    """The parts of an import path.

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


def parse_experiment_path(path: str) -> ExperimentPath:
    """Return the parts of an import path.

    Raises:
        ExperimentPathError: If it has none of the three forms, or its file doesn't exist.
    """
    location, colon, name = path.rpartition(":")
    if colon and location.endswith(".py"):
        return _in_file(path, Path(location), name)
    if path.endswith(".py"):
        names = _names_in(Path(path))
        known = f" ({', '.join(names)})" if names else ""
        raise ExperimentPathError(
            f"{path!r} names a file only; add a class or function of it{known}, as in "
            f"{path}:{names[0] if names else 'Class'}"
        )
    if not colon:
        location, _, name = path.rpartition(".")
    parts = [*location.split("."), *name.split(".")]
    if not location or not all(part.isidentifier() for part in parts):
        raise ExperimentPathError(f"{path!r} is not an import path; write {FORMS}")
    return ExperimentPath(module=location, name=name)


def locate(path: str) -> tuple[str, tuple[str, ...]]:
    """Return a class path that holds in every folder, and the folders to import it from.

    Raises:
        ExperimentPathError: If it has none of the three forms, or its file doesn't exist.
    """
    current = str(working_dir())
    root = parse_experiment_path(path).root
    if root is None:
        top = path.partition(":")[0].partition(".")[0]
        below = Path(current, "src")
        if _has_module(below, top) and not _has_module(Path(current), top):
            return path, (current, str(below))
        return path, (current,)
    location, _, name = path.rpartition(":")
    path = f"{Path(location).expanduser().resolve()}:{name}"
    return path, tuple(dict.fromkeys([str(root), current]))


def _has_module(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def _in_file(path: str, file: Path, name: str) -> ExperimentPath:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ExperimentPathError(f"{path!r} names no class; write {FORMS}")
    file = file.expanduser().resolve()
    if not file.is_file():
        raise ExperimentPathError(f"{file} does not exist")
    root, module = file.parent, file.stem
    while (root / "__init__.py").is_file() and root.parent != root:
        root, module = root.parent, f"{root.name}.{module}"
    return ExperimentPath(module=module, name=name, file=file, root=root)


def _names_in(file: Path) -> list[str]:
    """Return the classes and functions that a file seems to define, without executing it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    definitions = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return [node.name for node in definitions if not node.name.startswith("_")]
