"""What this process has imported and read at import, and whether that has changed since."""

from __future__ import annotations

import atexit
import builtins
import importlib.util
import io
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import (
    ExtensionFileLoader,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import CodeType, ModuleType
from typing import Any
from zipimport import zipimporter

import ml_experiments
from ml_experiments.runs.provenance.fingerprint import Stamp, stamp_of
from ml_experiments.settings import noted_variables, whole_environment

# compiled code is found by its source's size and time in whole seconds, so a file that is edited
# within the second of its compilation looks unchanged to Python
_MIN_COMPILED_LATER_NS = 2 * 10**9
_OF_THE_SYSTEM = ("/proc/", "/sys/", "/dev/")


class LoadedSources:
    """Records each source file just before it is read; installed packages are left out.

    Attributes:
        has_exit_handler: Whether the import of one has registered a handler with `atexit`.
        environment: The variables before any import.
    """

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        own = os.path.dirname(str(ml_experiments.__file__))  # noqa: PTH120 - compared as strings
        self._installed = (*(paths[name] + os.sep for name in names), own + os.sep)
        self._stamps: dict[str, Stamp] = {}
        self._names: dict[str, None] = {}  # a set in order
        self._variables: set[str] = set()  # that the import has looked at
        self._missing: dict[str, bool] = {}  # files and folders of modules, and whether they exist
        self.has_exit_handler = False
        self.environment = whole_environment()

    def record_imports(self) -> None:
        """Record the files of all imports from now on."""
        original: Callable[[Any, str], CodeType | None] = SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, fullname: str) -> CodeType | None:
            path = loader.get_filename(fullname)
            if path.startswith(self._installed):
                return original(loader, fullname)
            stamp = stamp_of(path)
            self._stamps.setdefault(path, stamp)
            self._names[fullname] = None
            if stamp is None or _is_compiled_later(path, stamp):
                return original(loader, fullname)
            code: CodeType = loader.source_to_code(loader.get_data(path), path)
            return code

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]
        create_module = ExtensionFileLoader.create_module

        def create(loader: ExtensionFileLoader, spec: ModuleSpec) -> ModuleType:
            self._note_file(loader.path)
            return create_module(loader, spec)

        ExtensionFileLoader.create_module = create  # type: ignore[method-assign,assignment]
        self._record_code_of(SourcelessFileLoader, "path")
        self._record_code_of(zipimporter, "archive")

    def _record_code_of(self, loaders: Any, file: str) -> None:
        """Record the files from which loaders of compiled code or of archives read."""
        original = loaders.get_code

        def get_code(loader: Any, fullname: str) -> CodeType | None:
            self._note_file(os.path.abspath(getattr(loader, file)))  # noqa: PTH100
            code: CodeType | None = original(loader, fullname)
            return code

        loaders.get_code = get_code

    @contextmanager
    def noted_reads(self) -> Iterator[None]:
        """Note what else an import depends on: files that it opens, variables, missing modules.

        A file that the import itself has changed does not count.
        """
        original, before = builtins.open, set(self._stamps)

        def note_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, str | os.PathLike) and not set(mode) & set("wax+"):
                self._note_file(os.path.abspath(os.fspath(file)))  # noqa: PTH100
            return original(file, mode, *args, **kwargs)

        finder = _Missing(self._note_missing)
        builtins.open = io.open = note_open
        sys.meta_path.append(finder)
        try:
            with noted_variables(self._variables.add):
                yield
        finally:
            sys.meta_path[:] = [f for f in sys.meta_path if f is not finder]
            builtins.open = io.open = original
            for path in self._stamps.keys() - before:
                if stamp_of(path) != self._stamps[path]:
                    del self._stamps[path]

    def _note_file(self, path: str) -> None:
        if not path.startswith((*self._installed, *_OF_THE_SYSTEM)):
            self._stamps.setdefault(path, stamp_of(path))

    def _note_missing(self, name: str) -> None:
        """Note that a module which one of the files imports is not there."""
        frame = sys._getframe(1)
        while frame is not None and _is_of_import(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None or frame.f_code.co_filename not in self._stamps:
            return
        for folder in sys.path:
            if not f"{folder}{os.sep}".startswith(self._installed):
                for path in (f"{folder}/{name}.py", f"{folder}/{name}"):
                    self._missing[path] = os.path.exists(path)  # noqa: PTH110 - a hot path

    @contextmanager
    def noted_exit_handlers(self) -> Iterator[None]:
        """Note whether one of the files registers an exit handler in the block."""
        register = atexit.register

        def note(handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
            caller = sys._getframe(1).f_code.co_filename
            self.has_exit_handler = self.has_exit_handler or caller in self._stamps
            return register(handler, *args, **kwargs)

        atexit.register = note  # type: ignore[assignment]
        try:
            yield
        finally:
            atexit.register = register

    def modules(self) -> list[ModuleType]:
        """Return the modules that the files have become, in the order of their imports."""
        return [sys.modules[name] for name in self._names if name in sys.modules]

    def have_changed(self, environment: Mapping[str, str] | None = None) -> bool:
        """Return whether what was imported is no longer there as it was.

        Args:
            environment: The environment that an import would see now; None for the same.
        """
        if environment is not None:
            known = self.environment
            if any(environment.get(name) != known.get(name) for name in self._variables):
                return True
        if any(stamp_of(path) != stamp for path, stamp in self._stamps.items()):
            return True
        return any(os.path.exists(path) != was for path, was in self._missing.items())  # noqa: PTH110


class _Missing:
    """The last finder of modules: what gets here is not found."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def find_spec(self, name: str, path: object = None, _target: object = None) -> None:
        if path is None:
            self._note(name)


def _is_of_import(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen importlib")


def _is_compiled_later(path: str, stamp: tuple[int, int, int, int]) -> bool:
    """Return whether compiled code, if there is some, was surely made of this source."""
    try:
        compiled = os.stat(importlib.util.cache_from_source(path))  # noqa: PTH116
    except (OSError, NotImplementedError):
        return True
    return compiled.st_mtime_ns - stamp[0] > _MIN_COMPILED_LATER_NS
