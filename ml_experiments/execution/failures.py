"""From an exception to a `RunError`: its kind and the experiment's own traceback."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

import ml_experiments
from ml_experiments.errors import (
    AuthError,
    BackendError,
    CacheError,
    ConfigError,
    ExperimentPathError,
    InsufficientMemoryError,
    SoftTimeout,
)
from ml_experiments.runs.result import ErrorKind, RunError

LONGEST_TRACEBACK = 64 * 1024
LONGEST_MESSAGE = 16 * 1024

_PACKAGE = Path(ml_experiments.__file__).parent
_OWN_EXPERIMENTS = _PACKAGE / "tasks"
_CUDA_OOM_TYPES = {"OutOfMemoryError"}
_CUDA_OOM_TEXT = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|HIP out of memory|RESOURCE_EXHAUSTED"
)
_HOST_OOM_TEXT = re.compile(r"DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory")
_AUTH_TYPES = {"GatedRepoError", "LocalTokenNotFoundError"}


def describe_failure(error: BaseException) -> RunError:
    """Return the error of a run that this exception ended, without a hint."""
    return RunError(
        kind=classify(error),
        type=type(error).__name__,
        message=_text_of(error)[:LONGEST_MESSAGE],
        traceback=_own_traceback(error),
    )


def classify(error: BaseException) -> ErrorKind:
    """Return the kind of an exception, looking through what it was raised from."""
    kinds = [_kind_of_one(link) for link in chain(error)]
    return next((kind for kind in kinds if kind is not None), ErrorKind.EXPERIMENT)


def _kind_of_one(error: BaseException) -> ErrorKind | None:
    name, text = type(error).__name__, _text_of(error)
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


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception was caused by a full disk or quota."""
    return any(is_full(e) for e in chain(error))


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether this very exception is that of a full disk or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as e:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        return f"(its message could not be read: {type(e).__name__})"


def _own_traceback(error: BaseException) -> str:
    """Format a traceback from the experiment's first frame on."""
    for link in chain(error):
        link.__traceback__ = _skip_own_frames(link.__traceback__)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as e:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        frames = "".join(traceback.format_tb(error.__traceback__))
        text = f"{frames}{type(error).__name__} (not printable: {type(e).__name__})\n"
    if len(text) > LONGEST_TRACEBACK:
        half = LONGEST_TRACEBACK // 2
        text = (
            f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        )
    return text


def _skip_own_frames(frame: TracebackType | None) -> TracebackType | None:
    while frame is not None and _is_own(Path(frame.tb_frame.f_code.co_filename)):
        frame = frame.tb_next
    return frame


def _is_own(file: Path) -> bool:
    return file.is_relative_to(_PACKAGE) and not file.is_relative_to(_OWN_EXPERIMENTS)
