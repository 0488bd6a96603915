"""Identifies a process, also after it has ended."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process among all machines and restarts, also after it has ended.

    Attributes:
        boot_id: Linux's name for the time since it booted; None elsewhere.
        pid_namespace: Linux's name for the set of processes that its pid is one of: those of a
            container, for example.
        start_ticks: When the process started, in clock ticks since boot, where boot_id is known.
            Unlike `create_time`, it doesn't change when the clock is set.
        create_time: When the process started, as Unix time, where there is no boot_id.
    """

    hostname: str
    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    start_ticks: int | None = None
    create_time: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.pid < 2**31:
            raise ValueError(f"pid is {self.pid}, not a process")

    def is_alive(self) -> bool | None:
        """Return whether the process lives; None for one that can't be seen from here."""
        if self.hostname != socket.gethostname():
            return None
        boot_id = _read_boot_id()
        if boot_id is not None and self.boot_id is not None:
            if boot_id != self.boot_id or _read_pid_namespace() != (
                self.pid_namespace or _read_pid_namespace()
            ):
                return None  # another machine or container of this name, or gone with a reboot
            stat = _read_stat(self.pid)
            return stat is not None and stat[0] not in ("Z", "X") and stat[1] == self.start_ticks
        import psutil  # slow to import, and Linux does without

        try:
            found = psutil.Process(self.pid)
            created_at = found.create_time()
            return found.status() != psutil.STATUS_ZOMBIE and (
                self.create_time is None or abs(created_at - self.create_time) < 1
            )
        except psutil.NoSuchProcess:
            return False


def this_process() -> ProcessId:
    """Return the id of this process."""
    return _process_of(socket.gethostname(), os.getpid())


@functools.lru_cache(maxsize=1)  # by the pid: a fork is another process
def _process_of(hostname: str, pid: int) -> ProcessId:
    boot_id, stat = _read_boot_id(), _read_stat(pid)
    if boot_id is None or stat is None:
        import psutil

        return ProcessId(hostname, pid, create_time=psutil.Process().create_time())
    return ProcessId(hostname, pid, boot_id, _read_pid_namespace(), stat[1])


def _read_boot_id() -> str | None:
    """Return what Linux names the time since it booted; None elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _read_pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a hot path
    except OSError:
        return None


def _read_stat(pid: int) -> tuple[str, int] | None:
    """Return a process's state and its start in clock ticks since boot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # its name, before that, may hold anything
    return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
