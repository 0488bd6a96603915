"""Which files of this package go into a container: what runs there, what the experiment imports.

Following the imports of a hundred modules takes half a second, so the answer is kept in a file for
as long as this package does not change.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_experiments
from ml_experiments.backends.modal.preflight.import_graph import (
    OWN_PACKAGE,
    ImportGraph,
    walk_own_package,
)
from ml_experiments.errors import RunFolderError
from ml_experiments.runs.provenance.fingerprint import hash_of
from ml_experiments.runs.records import read_json_object
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.settings import index_dir

PACKAGE = Path(ml_experiments.__file__).parent
# what executes a run, and what every experiment may use of this package
RUN_ROOTS = ("backends.modal.container.run_remote", "execution", "experiment")
# where modules are imported by names in a table, which no walk of imports sees
_BY_NAME = {"runner": "backends"}
_CODE = {".py", ".pyc", ".so"}
_FILE_NAME = "container-files.json"


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
    present = dict(_stamps())
    state, asked = hash_of(sorted(present.items())), " ".join([*roots, *sorted(imported)])
    known = _read_answers(state)
    answer = known.get(asked)
    if isinstance(answer, list) and present.keys() >= set(map(str, answer)):
        return frozenset(map(Path, answer))
    found = _follow(roots, imported)
    with contextlib.suppress(OSError):  # it takes as long the next time
        index_dir().mkdir(parents=True, exist_ok=True)
        answers = {**known, asked: sorted(map(str, found))}
        write_json_atomically(index_dir() / _FILE_NAME, {"state": state, "answers": answers})
    return found


def _read_answers(state: str) -> dict[str, Any]:
    """Return what was found before, if this package was in the same state."""
    try:
        record = read_json_object(index_dir() / _FILE_NAME)
    except RunFolderError:  # there is none, or it is damaged
        return {}
    answers = record.get("answers") if record.get("state") == state else None
    return answers if isinstance(answers, dict) else {}


def _stamps() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each file of this package, named relative to it, with what changes when it does."""
    for folder, folders, names in os.walk(PACKAGE):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for file in (Path(folder, name) for name in names):
            status = file.stat()
            yield str(file.relative_to(PACKAGE)), (status.st_mtime_ns, status.st_size)


def _follow(roots: tuple[str, ...], imported: frozenset[str]) -> frozenset[Path]:
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
