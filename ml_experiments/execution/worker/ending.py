"""Ends a worker's process as Python ends a program, without tearing down the interpreter.

That takes half a second once torch is imported, and would copy all memory that is shared with the
template. So only what belongs to the run is finalized: Python's exit handlers are called, those
of C libraries are not.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
import weakref
from types import ModuleType
from typing import Any, NoReturn

from ml_experiments.config.building import reader_of
from ml_experiments.config.fields import fields_of
from ml_experiments.config.schema import schema_of
from ml_experiments.execution.worker.sources import LoadedSources


def end_process(sources: LoadedSources) -> NoReturn:
    """Join threads, call exit handlers, finalize the experiment's modules, flush, and exit."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for cached in (schema_of, reader_of, fields_of):
        cached.cache_clear()
    for module in reversed(sources.modules()):
        _clear(module)
    for name in ("stdin", "stdout", "stderr"):  # what stands for them may hold open files
        _flush(getattr(sys, name, None))
        setattr(sys, name, getattr(sys, f"__{name}__"))
    gc.collect()
    flush_files()
    ctypes.CDLL(None).fflush(None)  # what C code has printed
    os._exit(0)


def flush_files() -> None:
    """Write what open files still hold, wherever they are referred to.

    Only objects that were made since the last freeze are looked at.
    """
    for candidate in gc.get_objects():
        if issubclass(type(candidate), _io._IOBase):
            _flush(candidate)


def _flush(stream: Any) -> None:
    with contextlib.suppress(Exception):  # closed, or of a class that can't
        stream.flush()


def keep_finalizers() -> list[weakref.finalize[..., Any]]:
    """Have what exists now outlive the forks of this process: a temporary folder, for example."""
    kept = [f for f in list(weakref.finalize._registry) if f.atexit]  # type: ignore[attr-defined]
    for finalizer in kept:
        finalizer.atexit = False
    return kept


def _clear(module: ModuleType) -> None:
    """Drop what a module refers to, in the order in which the interpreter does."""
    variables = vars(module)
    for is_private in (True, False):
        for name in list(variables):
            if name != "__builtins__" and is_private == (name[:1] == "_" and name[1:2] != "_"):
                variables[name] = None
