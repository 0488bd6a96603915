"""From an exception to a `RunError`: its kind and the experiment's own traceback."""

from __future__ import annotations

import bdb
import errno
import re
import signal
import subprocess

from ml_experiments.errors import (
    AuthError,
    BackendError,
    CacheError,
    ConfigError,
    ExperimentPathError,
    InsufficientMemoryError,
    SoftTimeout,
)
from ml_experiments.experiment.tracebacks import (
    chain,
    describe_debugger,
    format_traceback,
    message_of,
)
from ml_experiments.runs.result import ErrorKind, RunError

MAX_MESSAGE = 16 * 1024

_GPU_OOM_TYPES = {"OutOfMemoryError"}
# the texts of the drivers and libraries themselves; a test has an example of each
_GPU_OOM_TEXT = re.compile(
    r"(?i:\b(cuda|hip|cuMem)\w*\]?( (driver|runtime|error|failed|failure|with|\d+|\(\d+\)))*"
    r" ?:? ?['(]?out of memory)|(XPU|MPS backend) out of memory|Out of memory error on GPU"
    r"|Allocation on device \d+ would exceed allowed memory|Invalid buffer size: [\d.]+ [GT]i?B"
    r"|Error out of memory at line \d+ in file|out_of_memory: (RMM|CUDA)"  # bitsandbytes, RAPIDS
    r"|^(torch|cupy)[\w.]*\.OutOfMemoryError\b"  # the last line of a child's traceback
    r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|CUDA driver error: 2\b|NVRTC_ERROR_OUT_OF_MEMORY|OUT_OF_DEVICE_MEMORY"
    r"|\b(CU|HIP|ROC)[A-Z]+_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|miopenStatusAllocFailed"
    r"|CURAND_STATUS_ALLOCATION_FAILED|CUDNN_STATUS_\w+_DEVICE_ALLOCATION_FAILED"
    r"|Failed to CUDA (host )?(alloc|calloc|malloc)"  # NCCL
    # JAX and TensorFlow; the name of the status alone also means the quota of a web service
    r"|(RESOURCE_EXHAUSTED|Resource exhausted): (.{0,60}\b(Out of|Ran out of) memory"
    r"|Failed to allocate|Attempting to (reserve|allocate))"
    r"|Failed to allocate \d+ bytes for new constant|failed to allocate memory \[Op:"
    r"|RecvDone unable to allocate output tensor"
    r"|OOM when allocating tensor.*by allocator GPU|Dst tensor is not initialized"
    # ONNX Runtime, TensorRT, MLX, XGBoost
    r"|BFCArena::\w+ Failed to allocate memory|Error Code \d+: OutOfMemory|\[metal::malloc\]"
    r"|device_helpers\.cuh.*Memory allocation error",
    re.DOTALL | re.MULTILINE,
)
# what vLLM and Transformers raise as a ValueError, before the memory itself is exhausted
_MODEL_TOO_LARGE = re.compile(
    r"No available memory for the cache blocks|Free memory on device .*less than desired GPU memory"
    r"|.*(larger than the (available KV cache memory|maximum number of tokens that can be stored))"
    r"|Some modules are dispatched on the CPU or the disk\. Make sure you have enough GPU RAM",
    re.DOTALL,
)
_HOST_OOM_TEXT = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|std::bad_alloc"
    r"|memory allocation of \d+ bytes failed|not enough memory: you tried to allocate"
    r"|OOM when allocating tensor.*by allocator (cpu|mklcpu)|OUT_OF_HOST_MEMORY"
    r"|^([\w.]+\.)?_?(Array|Arrow)?MemoryError\b"  # the last line of a child's traceback
    r"|\(-4:Insufficient memory\)|Out of Memory Error: (could not|failed to)"  # OpenCV, DuckDB
    r"|due to the node running low on memory|java\.lang\.OutOfMemoryError"  # Ray, Spark
    r"|DataLoader worker \(pid.*\) is killed by signal: Killed|Signal 9 \(SIGKILL\) received by"
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
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_NO_ROOM_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|\(os error (28|122)\)"
)
# or the file's size limit
_DISK_FULL_TEXT = re.compile(
    rf"{_NO_ROOM_TEXT.pattern}|\(os error 27\)"
    r"|PytorchStreamWriter failed writing file|inline_container.*unexpected pos \d+ vs \d+"  # torch
)
_AUTH_TYPES = {"GatedRepoError", "LocalTokenNotFoundError"}


def describe_failure(error: BaseException) -> RunError:
    """Return the error of a run that this exception ended, without a hint."""
    if isinstance(error, bdb.BdbQuit):
        return RunError(ErrorKind.EXPERIMENT, "DebuggerQuit", describe_debugger(error))
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
    if not _is_about_a_value(error) and (kind := kind_of_text(text)):
        return kind
    if name in _GPU_OOM_TYPES or _MODEL_TOO_LARGE.match(text):
        return ErrorKind.CUDA_OOM
    if isinstance(error, MemoryError) or _is_shared_memory_full(error) or _is_of(error, "SIGKILL"):
        return ErrorKind.HOST_OOM
    if isinstance(error, ConfigError):
        return ErrorKind.CONFIG
    if isinstance(error, ImportError | ExperimentPathError):
        return ErrorKind.IMPORT
    if isinstance(error, AuthError) or name in _AUTH_TYPES:
        return ErrorKind.AUTH
    if isinstance(error, BackendError | CacheError) or is_full(error):
        return ErrorKind.INFRASTRUCTURE
    return None


def _is_about_a_value(error: BaseException) -> bool:
    return isinstance(error, _OTHER_TYPES) and type(error).__name__ != "XGBoostError"


def _is_of(error: BaseException, name: str) -> bool:
    """Return whether a command that the experiment started was ended by this signal."""
    if not isinstance(error, subprocess.CalledProcessError):
        return False
    number = signal.Signals[name].value
    return error.returncode in (-number, 128 + number)  # the latter is what a shell makes of it


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
    if isinstance(error, OSError) and str(error.filename or "").startswith("/dev/shm"):
        return error.errno == errno.ENOSPC
    return not _is_about_a_value(error) and bool(_SHARED_MEMORY_TEXT.search(message_of(error)))


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception was caused by a full disk or quota, or a file's size limit."""
    return any(map(is_full, chain(error)))


def is_without_room(error: BaseException | None) -> bool:
    """Return whether an exception says that it was the disk or a quota, not a file's size limit."""
    return any(
        (isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT))
        or _NO_ROOM_TEXT.search(message_of(link))
        for link in chain(error)
    )


def is_full(error: BaseException) -> bool:
    """Return whether this very exception is that of a full disk or quota, or a size limit."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = message_of(error)
    if isinstance(error, OSError) and _SHORT_WRITE.fullmatch(text):
        return True  # numpy's own words, without the system's, when an array does not fit
    is_said = not _is_about_a_value(error) and _DISK_FULL_TEXT.search(text) is not None
    return is_said or _is_of(error, "SIGXFSZ")
