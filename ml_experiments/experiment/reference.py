"""The import path of an experiment, and its parts.

It has one of three forms: `pkg.module.Class`, `pkg.module:Class` or `path/to/file.py:Class`. The
last part may also be a function.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from ml_experiments.errors import ExperimentPathError
from ml_experiments.settings import working_dir

# train/Train, pkg/train.Train, train.py::Train, train.Train()
_OTHER_FORM = re.compile(
    r"(?P<file>[\w./-]*?\w)(?:\.py)?(?:::?|/|\.)(?P<name>[A-Za-z_]\w*)(?:\(\))?"
)
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
        raise ExperimentPathError(_names_file_only(path, path))
    if not colon:
        location, _, name = path.rpartition(".")
    parts = [*location.split("."), *name.split(".")]
    if not location or not all(part.isidentifier() for part in parts):
        if not colon and path.isidentifier() and Path(f"{path}.py").is_file():
            raise ExperimentPathError(_names_file_only(path, f"{path}.py"))
        forms = _meant(path) or FORMS
        if "=" in path:  # a field of the config
            forms = f"{forms}, before any KEY=VALUE"
        raise ExperimentPathError(f"{path!r} is not an import path; write {forms}")
    return ExperimentPath(module=location, name=name)


def locate(path: str) -> tuple[str, tuple[str, ...]]:
    """Return a class path that holds in every folder, and the folders to import it from.

    Raises:
        ExperimentPathError: If it has none of the three forms, or its file doesn't exist.
    """
    current = str(working_dir())
    parsed = parse_experiment_path(path)
    if parsed.file is None:
        top = path.partition(":")[0].partition(".")[0]
        below = Path(current, "src")
        if _has_module(below, top) and not _has_module(Path(current), top):
            return path, (current, str(below))
        return path, (current,)
    return f"{parsed.file}:{parsed.name}", tuple(dict.fromkeys([str(parsed.root), current]))


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


def _names_file_only(path: str, file: str) -> str:
    names = _names_in(Path(file))
    known = f" ({', '.join(names)})" if names else ""
    return (
        f"{path!r} names a file only; add a class or function of it{known}, as in "
        f"{file}:{names[0] if names else 'Class'}"
    )


def _meant(path: str) -> str | None:
    """Return the import path that another way of writing one stands for, if there is its file."""
    match = _OTHER_FORM.fullmatch(path)
    if match is None or not Path(f"{match['file']}.py").is_file():
        return None
    return f"{match['file']}.py:{match['name']}"


def _names_in(file: Path) -> list[str]:
    """Return the experiments that a file seems to define, without executing it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    classes: dict[str, None] = {}  # which have run(), in the order of the file
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (
            any(isinstance(base, ast.Name) and base.id in classes for base in node.bases)
            or any(
                isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == "run"
                for part in node.body
            )
        ):
            classes[node.name] = None
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in (*classes, *functions) if not name.startswith("_")]
