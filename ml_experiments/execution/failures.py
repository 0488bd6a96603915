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

_GPU_OOM_TYPES = {"OutOfMemoryError"}
# the texts of the drivers and libraries themselves; a test has an example of each
_GPU_OOM_TEXT = re.compile(
    r"(CUDA|HIP|XPU|MPS backend) out of memory"
    r"|(CUDA|HIP)( driver)? error: out of memory|cuda runtime error \(2\)"
    r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|cuMem\w+ failed: out of memory"
    r"|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CURAND_STATUS_ALLOCATION_FAILED|CUDNN_STATUS_\w+_DEVICE_ALLOCATION_FAILED"
    r"|Cuda failure (\d+ )?'out of memory'|Failed to CUDA (host )?(calloc|malloc)"  # NCCL
    # JAX and TensorFlow; the name of the status alone also means the quota of a web service
    r"|(RESOURCE_EXHAUSTED|Resource exhausted): Out of memory"
    r"|OOM when allocating tensor.*by allocator GPU|Dst tensor is not initialized",
    re.DOTALL,
)
_HOST_OOM_TEXT = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|std::bad_alloc"
    r"|memory allocation of \d+ bytes failed"
    r"|OOM when allocating tensor.*by allocator (cpu|mklcpu)"
    r"|^MemoryError\b"  # the last line of a child's traceback
    r"|DataLoader worker \(pid.*\) is killed by signal: Killed"
    r"|process \d+ terminated with signal SIGKILL|exit codes of the workers are \{.*SIGKILL",
    re.DOTALL | re.MULTILINE,
)
_SHARED_MEMORY_TEXT = re.compile(
    r"is killed by signal: Bus error|insufficient shared memory \(shm\)"
    r"|unable to write to file </torch_|</torch_[^>]*>.*(No space left|Cannot allocate memory)"
    r"|shared memory segment \S*nccl\S* .*No space left on device|failed to extend /dev/shm/"
)
# of errors that say what is wrong with a value, the text may quote anything
_OTHER_TYPES = (AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
_DEBUGGER = ("bdb.py", "pdb.py", "cmd.py")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
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
    if name in _GPU_OOM_TYPES:
        return ErrorKind.CUDA_OOM
    if not isinstance(error, _OTHER_TYPES) and (kind := kind_of_text(text)):
        return kind
    if isinstance(error, MemoryError) or _is_shared_memory_full(error):
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


def kind_of_text(text: str) -> ErrorKind | None:
    """Return which memory a library's message says is exhausted; None if it says no such thing."""
    if _GPU_OOM_TEXT.search(text):
        return ErrorKind.CUDA_OOM
    if _HOST_OOM_TEXT.search(text) or _SHARED_MEMORY_TEXT.search(text):
        return ErrorKind.HOST_OOM
    return None


def is_shared_memory_full(error: BaseException | None) -> bool:
    """Return whether an exception was caused by full shared memory, which is not the disk."""
    return any(map(_is_shared_memory_full, chain(error)))


def _is_shared_memory_full(error: BaseException) -> bool:
    if is_full(error):
        return str(error.filename or "").startswith("/dev/shm")
    is_other = isinstance(error, _OTHER_TYPES)
    return not is_other and _SHARED_MEMORY_TEXT.search(message_of(error)) is not None


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception was caused by a full disk or quota."""
    return any(is_full(e) for e in chain(error))


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether this very exception is that of a full disk or quota."""
    if not isinstance(error, OSError):
        return False
    # numpy's own words, without the system's, when an array does not fit
    is_numpys = error.errno is None and _SHORT_WRITE.fullmatch(str(error)) is not None
    return is_numpys or error.errno in (errno.ENOSPC, errno.EDQUOT)
