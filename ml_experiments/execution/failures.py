"""From an exception to a `RunError`: its kind, the experiment's own traceback, what to do."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

from ml_experiments.backends.modal.gpus import next_larger, parse_gpu
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
from ml_experiments.experiment.reference import pip_name
from ml_experiments.runs.spec import ErrorKind, RunError, RunSpec
from ml_experiments.settings import is_emulated

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

# where a container has its volumes, and how each is emptied; a test compares them with the image
_RUNS_ON_MODAL = (
    Path("/runs"),
    "free space on the volume ml-experiments-runs by deleting old runs, as with: "
    "modal volume rm -r ml-experiments-runs RUN_ID",
)
_CACHE_ON_MODAL = (
    Path("/cache"),
    "free space on the volume hf-model-cache by deleting models, as with: "
    "ml-experiments cache clear PATTERN",
)


def describe_failure(error: BaseException, spec: RunSpec) -> RunError:
    """Return the error of a run that this exception ended."""
    kind = classify(error)
    return RunError(
        kind=kind,
        type=type(error).__name__,
        message=_text_of(error)[:LONGEST_MESSAGE],
        traceback=_own_traceback(error),
        hint=hint_for(kind, error, spec),
    )


def classify(error: BaseException) -> ErrorKind:
    """Return the kind of an exception, looking through what it was raised from."""
    kinds = [_kind_of_one(link) for link in _chain(error)]
    return next((kind for kind in kinds if kind is not None), ErrorKind.EXPERIMENT)


def hint_for(kind: ErrorKind, error: BaseException | None, spec: RunSpec) -> str:
    """Return what the user can do about an error of this kind; empty when nothing is known."""
    if kind is ErrorKind.CUDA_OOM:
        return f"{_larger_gpu(spec)}lower batch_size or the image size, or quantize (int8)"
    if kind is ErrorKind.HOST_OOM:
        more = "ask for more: --memory GIB" if spec.backend == "modal" else "use a larger machine"
        return f"lower batch_size or the amount of data held in memory, or {more}"
    if kind is ErrorKind.TIMEOUT:
        given = f"it is {spec.timeout_s:g} s now" if spec.timeout_s else "none is set"
        return (
            f"raise the timeout ({given}), use a faster GPU type, or do less per run; "
            "what the run saved in checkpoint_dir is kept: `ml-experiments runs resume "
            f"{spec.run_id}` goes on from there"
        )
    if kind is ErrorKind.IMPORT:
        missing = next((e.name for e in _chain(error) if isinstance(e, ModuleNotFoundError)), None)
        if isinstance(error, ExperimentPathError):
            missing = error.missing_module
        if missing and "." in missing:  # its package is there, or another of its namespace
            add = _add_package("NAME", spec)
            return f"nothing that is installed has {missing}; if it is a package's, {add}"
        if missing:
            return _add_package(pip_name(missing), spec)
    if kind is ErrorKind.AUTH:
        return "accept the model's terms on its page and set HF_TOKEN to a token that may read it"
    if kind is ErrorKind.INFRASTRUCTURE and _is_disk_full(error):
        return _free_space_hint(error, spec)
    if spec.backend == "modal" and any(map(_is_missing_data, _chain(error))):
        return (
            "data files are sent along with the package that they are in, not with a single file: "
            "put both in a folder with an __init__.py, or the data on a volume"
        )
    return ""


def _add_package(name: str, spec: RunSpec) -> str:
    if spec.backend != "modal":
        return f"pip install {name}"
    add = f"add it with --pip {name}"
    if is_emulated():
        add = f"the emulator has this machine's packages: pip install {name}; on Modal, {add}"
    return (
        f"{add}. A module of your own is sent along where an import statement names it, not where "
        "its name is computed"
    )


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
    if isinstance(error, BackendError | CacheError) or _is_disk_full(error):
        return ErrorKind.INFRASTRUCTURE
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)


def _is_missing_data(error: BaseException) -> bool:
    """Return whether a file was looked for beside the source, as a container has it."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    return isinstance(name, str) and "/experiment_source/" in name


def _is_disk_full(error: BaseException | None) -> bool:
    return any(_is_full(e) for e in _chain(error))


def _is_full(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free_space_hint(error: BaseException | None, spec: RunSpec) -> str:
    """Return how to make room; an error of a write, unlike one of an open, names no file."""
    if spec.backend != "modal":
        return "free some disk space, or set ML_EXPERIMENTS_RUNS_DIR to a larger disk"
    names = [e.filename for e in _chain(error) if _is_full(e)]
    names = [name for name in names if isinstance(name, str | bytes)]
    if not names:
        return f"{_RUNS_ON_MODAL[1]}; or, if it was a download, {_CACHE_ON_MODAL[1]}"
    for folder, hint in (_RUNS_ON_MODAL, _CACHE_ON_MODAL):
        if Path(os.fsdecode(names[0])).is_relative_to(folder):
            return hint
    return (
        "the container's own disk is full: write large files to the run's output_dir or "
        "checkpoint_dir, which are on a volume"
    )


def _larger_gpu(spec: RunSpec) -> str:
    if spec.gpu is None:
        return ""
    largest = max(parse_gpu(spec.gpu).choices, key=lambda choice: choice.memory_gb)
    larger = next_larger(largest)
    return f"use a larger GPU type (next: {larger}), " if larger else ""


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as e:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        return f"(its message could not be read: {type(e).__name__})"


def _own_traceback(error: BaseException) -> str:
    """Format a traceback from the experiment's first frame on."""
    for link in _chain(error):
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
