"""Identifies a process, also after it has ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """Return what tells this process from any other, for the manifest."""
    process = {"hostname": socket.gethostname(), "pid": os.getpid()}
    boot_id, stat = _read_boot_id(), _read_stat(os.getpid())
    if boot_id is None or stat is None:
        return {**process, "create_time": psutil.Process().create_time()}
    return {**process, "boot_id": boot_id, "start_ticks": stat[1]}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Return whether a process of a manifest lives; one on another machine is taken to."""
    if process["hostname"] != socket.gethostname():
        return True
    pid, boot_id = process["pid"], _read_boot_id()
    if boot_id is not None and "boot_id" in process:
        # not the time of creation: that moves when somebody sets the clock
        stat = _read_stat(pid)
        return (
            boot_id == process["boot_id"]
            and stat is not None
            and stat[0] not in ("Z", "X")
            and stat[1] == process.get("start_ticks")
        )
    try:
        found = psutil.Process(pid)
        created_at = found.create_time()
        return found.status() != psutil.STATUS_ZOMBIE and (
            abs(created_at - process.get("create_time", created_at)) < 1
        )
    except psutil.NoSuchProcess:
        return False


def _read_boot_id() -> str | None:
    """Return what Linux names the time since it booted; None elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _read_stat(pid: int) -> tuple[str, int] | None:
    """Return a process's state and its start in clock ticks since boot."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # its name, before that, may hold anything
    return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
