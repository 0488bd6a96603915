"""Every module that an experiment's module imports, followed through the user's own files.

A module is the user's own when its file stands outside `site-packages` and the standard
library: in the same folder or package, in a `src/` layout, or in an editable install. Own
modules have to be shipped; all others have to be in the image. No module is imported to find
out.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import sys
import sysconfig
import tokenize
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_experiments
from ml_experiments.backends.modal.preflight.imports import Import, imports_of, parse
from ml_experiments.errors import PreflightError
from ml_experiments.runs.provenance.fingerprint import Stamp, have_changed, stamp_of

OWN_PACKAGE = "ml_experiments"
OWN_EXPERIMENTS = f"{OWN_PACKAGE}.tasks."
_INSTALLED = {"site-packages", "dist-packages"}
_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()


@dataclass(frozen=True)
class LocalModule:
    """A module of the user's own.

    Attributes:
        name: Its absolute name.
        path: Its file; the folder of a namespace package.
        root: The folder below which the name spells the path: what stands on `sys.path`.
    """

    name: str
    path: Path
    root: Path


@dataclass(frozen=True)
class ImportGraph:
    """What an experiment needs to be importable somewhere else.

    Attributes:
        modules: The user's own modules, the experiment's first.
        external: All imports of what isn't the user's own, each different one once.
        problems: What cannot work anywhere else, one message each.
    """

    modules: tuple[LocalModule, ...]
    external: tuple[Import, ...]
    problems: tuple[str, ...]


def walk_imports(
    module: str, import_paths: Sequence[Path] = (), *, follows_own_package: bool = True
) -> ImportGraph:
    """Return everything that a module imports, directly or through the user's own modules.

    A walk is remembered until one of the files that it has read changes, or one of the folders.

    Args:
        module: The experiment's module.
        import_paths: Folders that are searched before `sys.path`.
        follows_own_package: Whether what this package's modules import is followed, too, besides
            that of its ready experiments.

    Raises:
        PreflightError: If the module itself isn't found.
    """
    key = (module, tuple(map(str, import_paths)), tuple(sys.path), follows_own_package)
    if key in _walked and not have_changed(_walked[key][1]):
        return _walked[key][0]
    importlib.invalidate_caches()
    walk = _Walk(_Finder(import_paths), follows_own_package=follows_own_package)
    if not walk.add_local(module):
        searched = ", ".join(str(p) for p in import_paths) or "sys.path"
        raise PreflightError(
            f"module {module!r} of the experiment is not a local Python file or package "
            f"(looked in {searched}); give its file as path/to/file.py:Class"
        )
    walk.run()
    graph = ImportGraph(
        modules=tuple(walk.modules.values()),
        external=tuple(walk.external.values()),
        problems=tuple(walk.problems),
    )
    _walked[key] = graph, walk.finder.stamps
    return graph


def walk_own_package(names: Iterable[str]) -> tuple[LocalModule, ...]:
    """Return modules of this package with every other of them that they import, lazily or not."""
    walk = _Walk(_Finder(()))
    for name in names:
        walk.add_local(name)
    walk.run()
    own = f"{OWN_PACKAGE}."  # a user's random.py may hide the standard one
    return tuple(m for name, m in walk.modules.items() if f"{name}.".startswith(own))


_walked: dict[tuple[Any, ...], tuple[ImportGraph, dict[str, Stamp]]] = {}


@functools.cache
def _public_names() -> dict[str, str]:
    """Return the module of each public name of this package, which it imports on first use."""
    stub = Path(ml_experiments.__file__).with_suffix(".pyi")
    return {
        alias.name: f"{OWN_PACKAGE}.{node.module}"
        for node in parse(stub.read_text(encoding="utf-8"), stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


class _Walk:
    def __init__(self, finder: _Finder, *, follows_own_package: bool = True) -> None:
        self.finder = finder
        self._follows_own_package = follows_own_package
        self.modules: dict[str, LocalModule] = {}
        self.external: dict[tuple[str, tuple[str, ...]], Import] = {}
        self.problems: list[str] = []
        self._queue: deque[LocalModule] = deque()

    def add_local(self, name: str) -> bool:
        """Add a module of the user's own and its parents; False if it isn't one."""
        found = self.finder.find(name)
        if found is None or not _is_local(found):
            return False
        parts = name.split(".")
        root = _root(found)
        for depth in range(1, len(parts) + 1):
            part = ".".join(parts[:depth])
            if part in self.modules:
                continue
            spec = self.finder.find(part)
            if spec is not None:
                self.modules[part] = LocalModule(part, _path(spec), root)
                self._queue.append(self.modules[part])
        return True

    def run(self) -> None:
        while self._queue:
            module = self._queue.popleft()
            if module.path.is_dir():
                continue  # a namespace package has no code of its own
            if module.path.suffix != ".py":
                self.problems.append(
                    f"{module.name} is compiled for this machine ({module.path}); publish it as "
                    "a package and add that with --pip"
                )
                continue
            if self._is_followed(module.name):
                self.finder.note(str(module.path))
                for found in _read_imports(module, self.problems):
                    self._follow(found)

    def _is_followed(self, module: str) -> bool:
        is_own = module.partition(".")[0] == OWN_PACKAGE
        return self._follows_own_package or not is_own or module.startswith(OWN_EXPERIMENTS)

    def _follow(self, found: Import) -> None:
        top = found.module.partition(".")[0]
        if self.add_local(found.module):
            for name in found.names:
                member = f"{found.module}.{name}"
                # a folder without code has no names of its own; another may have the module
                if not self.add_local(member) and self.modules[found.module].path.is_dir():
                    self._follow(replace(found, module=member, names=()))
                if found.module == OWN_PACKAGE and name in _public_names():
                    self.add_local(_public_names()[name])
            return
        spec = self.finder.find(top)
        if spec is not None and _is_local(spec) and not self._is_installed(found.module):
            if not found.optional:
                self.problems.append(
                    f"{found.place} imports {found.module}, which is not in {_path(spec)}"
                )
            return
        if top in sys.stdlib_module_names:
            return
        key = (found.module, found.names)
        known = self.external.get(key)
        if known is None or (known.optional and not found.optional):
            self.external[key] = found

    def _is_installed(self, module: str) -> bool:
        """Return whether a module is there, and not the user's own."""
        spec = self.finder.find(module)
        return spec is not None and not _is_local(spec)


class _Finder:
    def __init__(self, import_paths: Sequence[Path]) -> None:
        self._paths = [str(path) for path in import_paths]
        self._known: dict[str, importlib.machinery.ModuleSpec | None] = {}
        self.stamps: dict[str, Stamp] = {}  # of what was read or searched, from before
        self.note(*self._paths, *sys.path)

    def note(self, *paths: str) -> None:
        """Remember the state of files and folders."""
        for path in (each or "." for each in paths):
            if path not in self.stamps:
                self.stamps[path] = stamp_of(path)

    def find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Return where a module comes from, without importing it or its parents."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if not parent:
            first = importlib.machinery.PathFinder.find_spec(name, self._paths)
            # a folder without code is a namespace package only if nothing else has the name
            if first is not None and first.origin is not None:
                return first
            other = _find_top_level(name)
            if first is not None and other is not None and other.origin is None:
                # both are folders of one namespace
                return importlib.machinery.PathFinder.find_spec(name, [*self._paths, *sys.path])
            return other or first
        spec = self.find(parent)
        if spec is None or spec.submodule_search_locations is None:
            return None
        self.note(*spec.submodule_search_locations)
        # by its last part: of a namespace package's full name, the parent would have to be imported
        found = importlib.machinery.PathFinder.find_spec(
            name.rpartition(".")[2], list(spec.submodule_search_locations)
        )
        if found is not None:
            found.name = name
            if found.submodule_search_locations is not None:
                found.submodule_search_locations = list(found.submodule_search_locations)
        return found


def _find_top_level(name: str) -> importlib.machinery.ModuleSpec | None:
    # not importlib.util.find_spec: it trusts sys.modules, which knows `__main__` only
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, None) if find_spec is not None else None
        if isinstance(spec, importlib.machinery.ModuleSpec):
            return spec
    return None


def _read_imports(module: LocalModule, problems: list[str]) -> Iterable[Import]:
    is_package = module.path.name == "__init__.py"
    package = module.name if is_package else module.name.rpartition(".")[0]
    try:
        with tokenize.open(module.path) as file:
            source = file.read()
        return imports_of(source, module.path, package)
    except (OSError, SyntaxError, UnicodeDecodeError) as e:
        problems.append(f"{module.path} cannot be read as Python: {e}")
        return ()


def _path(spec: importlib.machinery.ModuleSpec) -> Path:
    if spec.origin is not None and spec.has_location:
        return Path(spec.origin).resolve()
    return Path(next(iter(spec.submodule_search_locations or ["."]))).resolve()


def _root(spec: importlib.machinery.ModuleSpec) -> Path:
    path = _path(spec)
    levels = spec.name.count(".") + (1 if path.name == "__init__.py" else 0)
    return path.parents[levels]


def _is_local(spec: importlib.machinery.ModuleSpec) -> bool:
    if spec.name.partition(".")[0] == OWN_PACKAGE:
        return True
    if not spec.has_location and not spec.submodule_search_locations:
        return False  # built in or frozen
    path = _path(spec)
    return _INSTALLED.isdisjoint(path.parts) and not path.is_relative_to(_STDLIB)
