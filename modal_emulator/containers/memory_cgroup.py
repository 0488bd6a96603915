"""A memory limit that the kernel enforces, where this machine lets the server make a cgroup."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "modal-emulator-"
_LAST_PROCESS_S = 1.0
# of the versions 2 and 1: what is written, None for the limit, and where kills are counted
_FILES: tuple[tuple[dict[str, str | None], str], ...] = (
    ({"memory.max": None, "memory.swap.max": "0", "memory.oom.group": "1"}, "memory.events"),
    ({"memory.limit_in_bytes": None, "memory.memsw.limit_in_bytes": None}, "memory.oom_control"),
)


class MemoryCgroup:
    """A cgroup whose processes have a memory limit together."""

    def __init__(self, folder: Path, counter: str) -> None:
        self._folder = folder
        self._counter = folder / counter

    @classmethod
    def create(cls, name: str, limit_bytes: int) -> MemoryCgroup | None:
        """Return a new cgroup, or None if this machine has none that can be written."""
        for parent in _parents():
            folder = parent / f"{_PREFIX}{os.getpid()}-{name}"
            try:
                folder.mkdir()
            except OSError:
                continue
            for settings, counter in _FILES:
                if (folder / next(iter(settings))).exists():
                    with contextlib.suppress(OSError):
                        for file, value in settings.items():
                            # without swap, or in an older kernel, some are not there
                            if (folder / file).exists():
                                (folder / file).write_text(value or str(limit_bytes))
                        return cls(folder, counter)
            folder.rmdir()
        return None

    @property
    def joined_by_writing(self) -> Path:
        """The file to which a process writes its id to be one of this cgroup."""
        return self._folder / "cgroup.procs"

    def has_killed(self) -> bool:
        """Return whether the kernel has killed a process because of the limit."""
        try:
            lines = self._counter.read_text(encoding="ascii").splitlines()
        except OSError:
            # it is deleted
            return False
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def delete(self) -> None:
        """Delete it, after the end of its last process."""
        ends_at = time.monotonic() + _LAST_PROCESS_S
        while True:
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError as e:
                if time.monotonic() > ends_at:
                    log.info("%s can't be deleted: %s", self._folder, e)
                    return
                time.sleep(0.01)
            else:
                return


@lru_cache
def _parents() -> tuple[Path, ...]:
    """Return the cgroups in which this process could make others, the most suitable first."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        # no Linux
        return ()
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount in mounts:
            own, _, kind = mount.partition(" - ")
            is_v2 = not controllers and kind.startswith("cgroup2 ")
            is_v1 = controllers == "memory" and kind.startswith("cgroup ")
            if is_v2 or (is_v1 and "memory" in kind.split()[-1].split(",")):
                top = Path(own.split()[4])
                folder = top / path.lstrip("/")
                # version 2 has no limits below a cgroup with processes, so beside it
                found += [folder, folder.parent] if folder != top else [top]
    parents = tuple(folder for folder in found if os.access(folder, os.W_OK))
    for abandoned in (each for parent in parents for each in parent.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # one with processes is in use
            if not Path("/proc", abandoned.name.split("-")[2]).exists():
                abandoned.rmdir()
    return parents
