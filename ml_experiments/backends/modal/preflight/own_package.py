"""Which files of this package go into a container: what runs there, what the experiment imports."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import ml_experiments
from ml_experiments.backends.modal.preflight.import_graph import (
    OWN_PACKAGE,
    ImportGraph,
    walk_own_package,
)

PACKAGE = Path(ml_experiments.__file__).parent
# what executes a run, and what every experiment may use of this package
RUN_ROOTS = ("backends.modal.container.run_remote", "execution", "experiment")
# where modules are imported by names in a table, which no walk of imports sees
_BY_NAME = {"runner": "backends"}
_CODE = {".py", ".pyc", ".so"}


def files_for_run(graph: ImportGraph) -> frozenset[Path]:
    """Return the files of this package that a run of an experiment needs, relative to it."""
    names = {module.name for module in graph.modules}
    return package_files(
        *RUN_ROOTS, imported=frozenset(n for n in names if n.startswith(f"{OWN_PACKAGE}."))
    )


@functools.cache
def package_files(*roots: str, imported: frozenset[str] = frozenset()) -> frozenset[Path]:
    """Return the files of some modules of this package and of all that these import.

    Args:
        *roots: Names below this package; a folder's stands for each module in it, for some are
            started by name.
        imported: Full names of further modules.
    """
    names = {*imported, *(module for root in roots for module in _modules_below(root))}
    found = walk_own_package(sorted(names))
    for importer, folder in _BY_NAME.items():
        if any(module.name.startswith(f"{OWN_PACKAGE}.{importer}.") for module in found):
            found = walk_own_package(sorted({*names, *_modules_below(folder)}))
    files = {module.path for module in found if module.path.is_file()}
    for package in {file.parent for file in files if file.name == "__init__.py"}:
        files |= set(_data_of(package))
    return frozenset(file.relative_to(PACKAGE.resolve()) for file in files)


def _modules_below(name: str) -> Iterator[str]:
    path = PACKAGE.joinpath(*name.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__")


def _data_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a package that are no modules; those of its packages are theirs."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix in _CODE:
            continue
        if path.is_file():
            yield path
        elif not (path / "__init__.py").exists():
            yield from _data_of(path)
