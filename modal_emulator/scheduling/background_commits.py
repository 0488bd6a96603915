"""Commits the volumes of running containers at intervals, as Modal does."""

from __future__ import annotations

import asyncio
import logging

from modal_emulator.containers.container import Container
from modal_emulator.scheduling.pools import ContainerPools

log = logging.getLogger(__name__)


async def commit_in_background(pools: ContainerPools, every_s: float) -> None:
    """Commit the volumes of all containers at intervals; runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        for container in pools.containers():
            if container.ready and container.sandbox is not None:
                await asyncio.to_thread(commit_volumes, container)


def commit_volumes(container: Container) -> None:
    """Commit the volumes of a container, as far as they are committed without being asked."""
    for mount in container.definition.volume_mounts:
        if mount.allow_background_commits and not mount.read_only:
            try:
                container.sandbox.commit(mount.volume_id)
            except OSError as e:
                # the container may have just ended, and commits at its exit
                log.info("no commit of %s: %s", mount.volume_id, e)
