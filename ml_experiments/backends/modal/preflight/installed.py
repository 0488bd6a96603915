"""What is installed here, by its metadata: which packages hold a module. Nothing is imported."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from ml_experiments.backends.modal.preflight.imports import Import
from ml_experiments.backends.modal.preflight.namespaces import is_known_namespace, prefixes_of

_CODE = (".py", ".so", ".pyd")
# how a package for Python 2 says in its __init__.py that others share its name
_SHARED = re.compile(r"extend_path|declare_namespace")
_DEEPEST_SHARED = 2  # as google.cloud


@dataclass(frozen=True)
class _Contents:
    """The modules of a package, and all folders that they are in."""

    modules: frozenset[str]
    folders: frozenset[str]


class InstalledPackages:
    """The packages of this Python, read when they are first asked for."""

    def __init__(self) -> None:
        self._known: dict[str, _Contents | None] = {}

    def owners_of(self, module: str) -> set[str]:
        """Return the installed packages that hold a module, or the package that it is in."""
        top, *_ = prefixes = prefixes_of(module)
        owners: set[str] = set()
        for name in self._by_top_level.get(top, ()):
            contents = self._contents(name)
            # some say what they hold in ways that can't be read: then it isn't known to be missing
            told = contents is not None and top in contents.modules | contents.folders
            if (
                contents is None
                or not told
                or module in contents.folders
                or not contents.modules.isdisjoint(prefixes)
            ):
                owners.add(canonicalize_name(name))
        return owners

    def is_namespace(self, module: str) -> bool:
        """Return whether packages share this name, as `google`, and none has code of its own."""
        prefixes = prefixes_of(module)
        all_contents = [self._contents(name) for name in self._by_top_level.get(prefixes[0], ())]
        told = [contents for contents in all_contents if contents is not None]
        return is_known_namespace(module) or (
            any(module in contents.folders for contents in told)
            and all(contents.modules.isdisjoint(prefixes) for contents in told)
        )

    def modules_of(self, found: Import) -> tuple[str, ...]:
        """Return the modules that an import needs: of a namespace, what is taken from it."""
        if found.names and self.is_namespace(found.module):
            return tuple(f"{found.module}.{name}" for name in found.names)
        return (found.module,)

    def _contents(self, package: str) -> _Contents | None:
        if package not in self._known:
            self._known[package] = _read_contents(package)
        return self._known[package]

    @functools.cached_property
    def _by_top_level(self) -> Mapping[str, list[str]]:
        return importlib.metadata.packages_distributions()


def _read_contents(package: str) -> _Contents | None:
    """Return what a package holds; None if it doesn't say."""
    files = importlib.metadata.files(package)
    if files is None:
        return None
    modules, folders = set(), set()
    for file in files:
        if file.suffix not in _CODE:
            continue
        *parents, name = file.parts
        if name != "__init__.py":
            modules.add(".".join([*parents, name.partition(".")[0]]))
        elif not _is_shared(file):
            modules.add(".".join(parents))
        folders |= {".".join(parents[:depth]) for depth in range(1, len(parents) + 1)}
    return _Contents(frozenset(modules), frozenset(folders))


def _is_shared(init: importlib.metadata.PackagePath) -> bool:
    if len(init.parent.parts) > _DEEPEST_SHARED:
        return False
    try:
        return _SHARED.search(init.read_text()) is not None
    except (OSError, UnicodeDecodeError):
        return False
