"""What a run ran on, for its manifest: machine, process, Python, packages, GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.fingerprint import hash_of
from ml_experiments.runs.provenance.nvidia import query_gpus
from ml_experiments.runs.provenance.processes import this_process

_DIST_INFO = re.compile(r"(?P<name>[A-Za-z0-9][\w.]*)-(?P<version>[^-]+)\.dist-info")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def with_this_process(manifest: Manifest) -> Manifest:
    """Return a manifest that names this process and its machine as the ones that execute."""
    return dataclasses.replace(manifest, process=this_process(), environment=this_environment())


@functools.cache
def this_environment() -> dict[str, Any]:
    """Return what `describe_environment` has found in this process or the one it is a fork of."""
    return describe_environment()


def describe_environment() -> dict[str, Any]:
    """Return the machine, Python, installed packages and GPUs; keys that are unknown are absent."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "platform": _platform(),
        "hostname": socket.gethostname(),
        "cpu_count": _cpu_count(),
        "memory_bytes": _memory_bytes(),
        "packages": package_versions(),
        **_describe_gpus(),
    }


def package_versions() -> dict[str, str]:
    """Return the version of each installed package, by normalized name, sorted."""
    return dict(_versions_in(_places()))


def hash_of_packages() -> str:
    """Return a hash of `package_versions`; each run asks for it."""
    return _hash_in(_places())


def _places() -> tuple[tuple[str, int], ...]:
    return tuple((place, _changed_at(place)) for place in sys.path)


@functools.lru_cache(maxsize=4)
def _hash_in(places: tuple[tuple[str, int], ...]) -> str:
    return hash_of(_versions_in(places))


@functools.lru_cache(maxsize=4)
def _versions_in(places: tuple[tuple[str, int], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, _ in places:
        try:
            entries = sorted(os.listdir(place or "."))  # noqa: PTH208 - a path for each would take long
        except OSError:  # a folder that isn't there, or a zip file
            continue
        for entry in entries:
            name, version = _parse_entry(place, entry)
            if name:
                # of two, the first on the path is what is imported
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return dict(sorted(found.items()))


def _changed_at(place: str) -> int:
    """Return when a folder was changed, as an installation does; each run asks for all versions."""
    try:
        return os.stat(place or ".").st_mtime_ns  # noqa: PTH116 - a hot path
    except OSError:
        return 0


def _parse_entry(place: str, entry: str) -> tuple[str, str]:
    # the name is enough: reading every METADATA would take twenty times as long
    match = _DIST_INFO.fullmatch(entry)
    if match:
        return match["name"], match["version"]
    if entry.endswith(".egg-info"):
        import importlib.metadata  # imported late: it takes long, and few packages need it

        distribution = importlib.metadata.Distribution.at(Path(place, entry))
        return distribution.metadata["Name"] or "", distribution.version or ""
    return "", ""


def _platform() -> str:
    """Return the operating system, its release, the processor's type and the C library."""
    # not platform.platform(), which starts a process to ask for the processor's name
    parts = [platform.system(), platform.release(), platform.machine()]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        parts.append(os.confstr("CS_GNU_LIBC_VERSION") or "")  # glibc's own name for itself
    return "-".join(filter(None, parts)).replace(" ", "")


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _CGROUP_LIMITS:  # a container may have less than the machine
        try:
            limit = Path(file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(installed, int(limit))
    return installed


def _describe_gpus() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    described: dict[str, Any] = {"gpus": _gpus_of_driver() or _gpus_of_torch(torch)}
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    if cuda is not None:
        described["torch_cuda"] = cuda
    if described["gpus"]:
        version = _driver_cuda_version()
        if version:
            described["driver_cuda"] = version
    return described


def _gpus_of_torch(torch: Any) -> list[dict[str, Any]]:
    # such as those of AMD, which nvidia-smi does not list
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_available():
        return []
    found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return [
        {"index": index, "name": gpu.name, "memory_bytes": gpu.total_memory}
        for index, gpu in enumerate(found)
    ]


def _gpus_of_driver() -> list[dict[str, Any]]:
    try:
        rows = query_gpus("index", "name", "uuid", "memory.total", "driver_version")
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, even if the program is there, as in a GPU image
    return [_describe_gpu(*row) for row in rows]


def _describe_gpu(index: str, name: str, uuid: str, memory_mib: str, driver: str) -> dict[str, Any]:
    gpu: dict[str, Any] = {"index": int(index), "name": name, "uuid": uuid, "driver": driver}
    if memory_mib.isdigit():
        gpu["memory_bytes"] = int(memory_mib) * 1024 * 1024
    return gpu


def _driver_cuda_version() -> str | None:
    """Return the newest CUDA version that the driver supports."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
