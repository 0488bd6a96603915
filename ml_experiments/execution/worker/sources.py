"""Which source files this process has imported, and whether they have changed since."""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import ml_experiments

Stamp = tuple[int, int, int, int] | None

# compiled code is found by its source's size and time in whole seconds, so a file that is edited
# within the second of its compilation looks unchanged to Python
_MIN_COMPILED_LATER_NS = 2 * 10**9


class LoadedSources:
    """Records each source file just before it is read; installed packages are left out.

    Attributes:
        has_exit_handler: Whether the import of one has registered a handler with `atexit`.
    """

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        own = os.path.dirname(str(ml_experiments.__file__))  # noqa: PTH120 - compared as strings
        self._installed = (*(paths[name] + os.sep for name in names), own + os.sep)
        self._stamps: dict[str, Stamp] = {}
        self._names: dict[str, None] = {}  # a set in order
        self.has_exit_handler = False

    def record_imports(self) -> None:
        """Record the files of all imports from now on."""
        original: Callable[[Any, str], CodeType | None] = SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, fullname: str) -> CodeType | None:
            path = loader.get_filename(fullname)
            if path.startswith(self._installed):
                return original(loader, fullname)
            stamp = _stamp(path)
            self._stamps.setdefault(path, stamp)
            self._names[fullname] = None
            if stamp is None or _is_compiled_later(path, stamp):
                return original(loader, fullname)
            code: CodeType = loader.source_to_code(loader.get_data(path), path)
            return code

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]

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

    def have_changed(self) -> bool:
        """Return whether one of the files is no longer what was imported."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 - a hot path
    except OSError:
        return None
    # the inode and the time of the last change also tell a file that was replaced by an older one
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _is_compiled_later(path: str, stamp: tuple[int, int, int, int]) -> bool:
    """Return whether compiled code, if there is some, was surely made of this source."""
    try:
        compiled = os.stat(importlib.util.cache_from_source(path))  # noqa: PTH116
    except (OSError, NotImplementedError):
        return True
    return compiled.st_mtime_ns - stamp[0] > _MIN_COMPILED_LATER_NS
