"""Kills containers that use more memory than the limit of their function.

Where a container has a cgroup, the kernel does it, but perhaps to one of its processes only.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from modal_emulator.containers.container import Container
from modal_emulator.scheduling.pools import ContainerPools

_MIB = 1 << 20
_EVERY_S = 0.1


async def watch_memory(pools: ContainerPools) -> None:
    """Look at the containers with a limit ten times a second."""
    while True:
        await asyncio.sleep(_EVERY_S)
        for container in pools.containers():
            limit_mib = container.definition.resources.memory_mb_max
            if not limit_mib or not container.pid or container.end_reason == "out_of_memory":
                continue
            if await asyncio.to_thread(_uses_more_than, container, limit_mib * _MIB):
                container.end("out_of_memory")
                container.kill()


def _uses_more_than(container: Container, limit_bytes: int) -> bool:
    if container.sandbox is not None and container.sandbox.cgroup is not None:
        return bool(container.sandbox.cgroup.has_killed())
    try:
        processes = container.processes()
    except OSError:
        # it has just ended, and its folder is deleted
        return False
    if sum(_resident_kib(pid, "status", "VmRSS:") for pid in processes) * 1024 <= limit_bytes:
        return False
    # more exact but slower: pages that several processes share are counted once
    return sum(_resident_kib(pid, "smaps_rollup", "Pss:") for pid in processes) * 1024 > limit_bytes


def _resident_kib(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii").splitlines()
    except OSError:
        # just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
