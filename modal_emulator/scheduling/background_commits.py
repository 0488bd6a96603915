"""Commits what containers wrote to their volumes without their asking, as Modal does."""

from __future__ import annotations

import asyncio
import logging

from modal_emulator.containers.container import Container
from modal_emulator.scheduling.pools import ContainerPools

log = logging.getLogger(__name__)


async def commit_in_background(pools: ContainerPools, every_s: float) -> None:
    """Commit every so many seconds; runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        for container in pools.containers():
            if container.ready and container.sandbox is not None:
                await asyncio.to_thread(_commit, container)


def _commit(container: Container) -> None:
    for mount in container.definition.volume_mounts:
        if mount.allow_background_commits and not mount.read_only:
            try:
                container.sandbox.commit(mount.volume_id)
            except OSError as e:
                # The container may have ended in this moment; its exit commits by itself.
                log.info("no commit of %s: %s", mount.volume_id, e)
