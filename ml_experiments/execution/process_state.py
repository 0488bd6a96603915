"""What one run in a warm process must not leave to the next.

What the import of an experiment and its `setup()` have changed stays, for they stay as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from ml_experiments.settings import restore_environment, whole_environment


@dataclass(frozen=True)
class ProcessState:
    """The settings of this process at one moment."""

    working_dir: str | None  # None: it had been deleted
    variables: dict[str, str]
    arguments: tuple[str, ...]
    search_path: tuple[str, ...]
    umask: int
    recursion_limit: int
    streams: tuple[Any, Any, Any]
    warning_filters: tuple[Any, ...]
    log_handlers: tuple[logging.Handler, ...]
    log_level: int
    torch: tuple[Any, bool] | None
    threads: frozenset[int | None]
    children: frozenset[int]

    def restore(self) -> None:
        """Put everything back."""
        if self.working_dir is not None:
            with contextlib.suppress(OSError):  # deleted since
                os.chdir(self.working_dir)
        restore_environment(self.variables)
        sys.argv[:] = self.arguments
        sys.path[:] = self.search_path
        os.umask(self.umask)
        sys.setrecursionlimit(self.recursion_limit)
        sys.stdin, sys.stdout, sys.stderr = self.streams
        warnings.filters[:] = self.warning_filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        root = logging.getLogger()
        for handler in set(root.handlers) - set(self.log_handlers):
            handler.close()
        root.handlers[:] = self.log_handlers
        root.setLevel(self.log_level)
        for thread in threading.enumerate():
            if type(thread).__name__ == "TMonitor":  # a progress bar of tqdm has started it
                thread.exit()  # type: ignore[attr-defined]
        torch = sys.modules.get("torch")
        if torch is not None and self.torch is not None:
            torch.set_default_dtype(self.torch[0])
            torch.set_grad_enabled(self.torch[1])

    def is_alone(self) -> bool:
        """Return whether every thread and child process that was started since has ended."""
        threads = {thread.ident for thread in threading.enumerate()}
        return threads <= self.threads and _children() <= self.children


def read_state() -> ProcessState:
    """Return the state as it is now."""
    try:
        working_dir = os.getcwd()  # noqa: PTH109 - a hot path
    except FileNotFoundError:
        working_dir = None
    umask = os.umask(0)
    os.umask(umask)
    root, torch = logging.getLogger(), sys.modules.get("torch")
    return ProcessState(
        working_dir=working_dir,
        variables=whole_environment(),
        arguments=tuple(sys.argv),
        search_path=tuple(sys.path),
        umask=umask,
        recursion_limit=sys.getrecursionlimit(),
        streams=(sys.stdin, sys.stdout, sys.stderr),
        warning_filters=tuple(warnings.filters),
        log_handlers=tuple(root.handlers),
        log_level=root.level,
        torch=(torch.get_default_dtype(), torch.is_grad_enabled()) if torch else None,
        threads=frozenset(thread.ident for thread in threading.enumerate()),
        children=_children(),
    )


def _children() -> frozenset[int]:
    try:
        with open("/proc/thread-self/children") as file:  # noqa: PTH123 - a hot path
            return frozenset(map(int, file.read().split()))
    except OSError:
        import psutil  # where the kernel doesn't list them

        return frozenset(child.pid for child in psutil.Process().children())
