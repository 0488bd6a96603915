"""Whether this process can fork workers that compute."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# open while a GPU is initialised, by whatever library; a forked process can't use that GPU
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd")
_OPENBLAS_THREAD_COUNTS = (
    "scipy_openblas_get_num_threads64_",
    "scipy_openblas_get_num_threads",
    "openblas_get_num_threads64_",
    "openblas_get_num_threads",
)


def why_not_to_fork() -> str | None:
    """Return why a fork of this process could hang or fail; None if it could not.

    A thread pool doesn't survive a fork: the child waits for its threads for ever. OpenBLAS
    starts its pool anew in the child, so its threads don't count; OpenMP's, which torch starts in
    its first parallel operation, do, and so do threads of any other library.
    """
    if sys.platform != "linux":
        return "forking is safe on Linux only"
    if any(device.startswith(_GPU_DEVICES) for device in _open_files()):
        return "a GPU is initialised"
    tasks = list(Path("/proc/self/task").iterdir())
    threads = len(tasks) - 1 - _openblas_threads()
    return f"{threads} threads are running" if threads > 0 else None


def _open_files() -> Iterator[str]:
    for descriptor in os.scandir("/proc/self/fd"):
        try:
            yield str(Path(descriptor.path).readlink())
        except OSError:
            continue  # the descriptor of the scan itself


def _openblas_threads() -> int:
    """Return how many threads the loaded copies of OpenBLAS have started."""
    maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    libraries = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "openblas" in line}
    return sum(_thread_count(library) - 1 for library in libraries)


def _thread_count(library: str) -> int:
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return 1
    names = (name for name in _OPENBLAS_THREAD_COUNTS if hasattr(loaded, name))
    name = next(names, None)
    return int(getattr(loaded, name)()) if name else 1
