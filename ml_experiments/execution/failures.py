"""From an exception to a `RunError`: its kind and the experiment's own traceback."""

from __future__ import annotations

import bdb
import errno
import re
import traceback
from pathlib import Path
from typing import TypeGuard

from ml_experiments.errors import (
    AuthError,
    BackendError,
    CacheError,
    ConfigError,
    ExperimentPathError,
    InsufficientMemoryError,
    SoftTimeout,
)
from ml_experiments.experiment.tracebacks import chain, format_traceback, message_of
from ml_experiments.runs.result import ErrorKind, RunError

MAX_MESSAGE = 16 * 1024

_CUDA_OOM_TYPES = {"OutOfMemoryError"}
_CUDA_OOM_TEXT = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|HIP out of memory|RESOURCE_EXHAUSTED"
)
_HOST_OOM_TEXT = re.compile(r"DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory")
_DEBUGGER = ("bdb.py", "pdb.py", "cmd.py")
_AUTH_TYPES = {"GatedRepoError", "LocalTokenNotFoundError"}


def describe_failure(error: BaseException) -> RunError:
    """Return the error of a run that this exception ended, without a hint."""
    if isinstance(error, bdb.BdbQuit):
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).name not in _DEBUGGER]
        place = f"{own[-1].filename}, line {own[-1].lineno}" if own else "the experiment"
        message = f"the debugger that was opened in {place} was left"
        return RunError(ErrorKind.EXPERIMENT, "DebuggerQuit", message)
    return RunError(
        kind=classify(error),
        type=type(error).__name__,
        message=message_of(error)[:MAX_MESSAGE],
        traceback=format_traceback(error),
    )


def classify(error: BaseException) -> ErrorKind:
    """Return the kind of an exception, looking through what it was raised from."""
    kinds = [_kind_of_one(link) for link in chain(error)]
    return next((kind for kind in kinds if kind is not None), ErrorKind.EXPERIMENT)


def _kind_of_one(error: BaseException) -> ErrorKind | None:
    name, text = type(error).__name__, message_of(error)
    if isinstance(error, SoftTimeout):
        return ErrorKind.TIMEOUT
    if isinstance(error, InsufficientMemoryError):
        return None  # what it was raised from tells which memory
    if name in _CUDA_OOM_TYPES or _CUDA_OOM_TEXT.search(text):
        return ErrorKind.CUDA_OOM
    if isinstance(error, MemoryError) or _HOST_OOM_TEXT.search(text):
        return ErrorKind.HOST_OOM
    if isinstance(error, ConfigError):
        return ErrorKind.CONFIG
    if isinstance(error, ImportError | ExperimentPathError):
        return ErrorKind.IMPORT
    if isinstance(error, AuthError) or name in _AUTH_TYPES:
        return ErrorKind.AUTH
    if isinstance(error, BackendError | CacheError) or is_disk_full(error):
        return ErrorKind.INFRASTRUCTURE
    return None


def needs_terminal(error: BaseException | None) -> bool:
    """Return whether an exception comes of a debugger or a question without a terminal."""
    return any(
        isinstance(e, bdb.BdbQuit)
        or (isinstance(e, EOFError) and str(e) == "EOF when reading a line")
        for e in chain(error)
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception was caused by a full disk or quota."""
    return any(is_full(e) for e in chain(error))


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether this very exception is that of a full disk or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
