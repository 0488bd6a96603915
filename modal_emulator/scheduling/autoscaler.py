"""Starts the containers that inputs need, and sees each through to its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

from grpclib import GRPCError

from modal_emulator.apps.apps import DEPLOYED, AppRecord, Apps
from modal_emulator.apps.functions import Functions, RunnableFunction
from modal_emulator.apps.logs import Logs
from modal_emulator.containers.container import Container
from modal_emulator.containers.launch import Placement
from modal_emulator.rpc.faults import Faults
from modal_emulator.scheduling.pools import ContainerPool, ContainerPools
from modal_emulator.storage.ids import new_id

log = logging.getLogger(__name__)

_DEFAULT_MAX_CONTAINERS = 32

Spawn = Callable[[Container], Awaitable[None]]
OnExit = Callable[[ContainerPool, Container, int, str], None]
OnGone = Callable[[AppRecord], None]


class Autoscaler:
    """Decides how many containers each pool has."""

    def __init__(
        self,
        pools: ContainerPools,
        functions: Functions,
        apps: Apps,
        logs: Logs,
        faults: Faults,
        *,
        spawn: Spawn,
        on_exit: OnExit,
        on_gone: OnGone,
        run_dir: Path,
    ) -> None:
        self._pools = pools
        self._functions = functions
        self._apps = apps
        self._logs = logs
        self._faults = faults
        self._spawn = spawn
        self._run_dir = run_dir
        self._lives: set[asyncio.Task[None]] = set()
        self._told_to_wait: defaultdict[str, set[str]] = defaultdict(set)
        # Starting is the expensive part; one at a time per core.
        self._max_starting = max(2, os.cpu_count() or 1)
        self._closed = False
        self._on_exit = on_exit
        self._on_gone = on_gone

    def scale_all(self) -> None:
        """Look at every pool again, after something outside of them changed."""
        for pool in self._pools.all():
            self.scale(pool)

    def scale_function(self, function_id: str) -> None:
        """Look at a function's pool again, after its settings changed."""
        self.scale(self._pools.get(function_id))

    def keep_warm(self, app: AppRecord) -> None:
        """Start the containers that an app's functions want even without calls."""
        for function_id in app.function_ids.values():
            self.scale_function(function_id)

    def keep_deployed_warm(self) -> None:
        """Do that for every deployed app, after a start of the server."""
        for app in self._apps.all():
            if app.state == DEPLOYED:
                self.keep_warm(app)

    def scale(self, pool: ContainerPool) -> None:
        """Start the containers that a pool needs now, and end those with old code."""
        record = self._functions.get(pool.function_id)
        running = self._apps.get(record.app_id).running
        if self._closed or not running or not self._functions.is_defined(record):
            return
        function = self._functions.runnable(pool.function_id)
        for container in pool.live:
            if container.function.definition_id != function.definition_id:
                container.end("outdated")
        for _ in range(self._missing(pool, function)):
            if not self._start(pool, function):
                return

    def _missing(self, pool: ContainerPool, function: RunnableFunction) -> int:
        wanted: int
        settings = function.first.autoscaler_settings
        live = len(pool.live)
        lacking = max(0, len(pool.waiting) - pool.free_slots)
        wanted = live + math.ceil(lacking / function.slots)
        if pool.waiting or any(each.running for each in pool.live):
            wanted += settings.buffer_containers
        if pool.broken_definition_id != function.definition_id:
            wanted = max(wanted, settings.min_containers)
        wanted = min(wanted, settings.max_containers or _DEFAULT_MAX_CONTAINERS)
        everywhere = self._pools.containers()
        starting = sum(1 for each in everywhere if not each.ready and not each.stopping)
        allowed = self._max_starting - starting
        # The rest follows when these are ready, if it is still needed then. A pool without any
        # container gets one at once: another function may be waiting for its result.
        return min(wanted - live, allowed if live else max(allowed, 1))

    def _start(self, pool: ContainerPool, function: RunnableFunction) -> bool:
        rank = self._rank_with_capacity(function)
        if rank is None:
            self._say_that_it_waits(pool, function)
            return False
        task_id = new_id("ta")
        place = Placement(task_id, rank, function.gpus[rank], self._run_dir / task_id[-8:])
        container = Container(function, place, self._logs, pool.changed)
        pool.containers[task_id] = container
        log.info("container %s of %s starts", task_id, function.name)
        life = asyncio.create_task(self._live(pool, container))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return True

    def _say_that_it_waits(self, pool: ContainerPool, function: RunnableFunction) -> None:
        """Say once in the logs of each call that no GPU is free for it, as Modal shows a queue."""
        # Containers that are kept warm wait as well, without a call.
        call_ids = dict.fromkeys(item.call.call_id for item in pool.waiting) or {"": None}
        gpus = [gpu for gpu in function.gpus if gpu is not None]
        wanted = " or ".join(gpu.in_words for gpu in gpus)
        free = "none is free" if all(gpu.count == 1 for gpu in gpus) else "too few are free"
        for call_id in call_ids:
            if call_id in self._told_to_wait[pool.function_id]:
                continue
            self._logs.say(
                function.app_id,
                f"{function.name} is waiting for {wanted}: {free}.",
                function_id=function.function_id,
                base_function_id=function.base_id,
                call_id=call_id,
            )
        self._told_to_wait[pool.function_id] = set(call_ids)

    def _rank_with_capacity(self, function: RunnableFunction) -> int | None:
        used = Counter[str]()
        for container in self._pools.containers():
            if container.place.gpu is not None:
                used[container.place.gpu.device] += container.place.gpu.count
        for rank, gpu in enumerate(function.gpus):
            capacity = None if gpu is None else self._faults.gpu_capacity(gpu.device)
            if gpu is None or capacity is None or used[gpu.device] + gpu.count <= capacity:
                return rank
        return None

    async def _live(self, pool: ContainerPool, container: Container) -> None:
        exit_code, error = -1, ""
        try:
            exit_code = await self._start_and_wait(container)
        except GRPCError as e:
            error = str(e.message)
        except Exception as e:
            # Whatever it is, those who wait for the container must hear of it.
            log.exception("container %s could not be started", container.task_id)
            error = f"{type(e).__name__}: {e}"
        container.read_output()
        if not container.ready and container.end_reason in ("", "startup_timeout"):
            pool.broken_definition_id = container.function.definition_id
        self._on_exit(pool, container, exit_code, error)
        await container.clean_up()
        log.info(
            "container %s of %s ended: %s",
            container.task_id,
            container.function.name,
            container.end_reason or f"exit code {exit_code}",
        )
        # Only now: an app is stopped when nothing of it is left.
        del pool.containers[container.task_id]
        self._pools.ended.append(container)
        self.scale_all()
        self._on_gone(self._apps.get(container.function.app_id))

    async def _start_and_wait(self, container: Container) -> int:
        if self._faults.start_delay_s:
            await asyncio.sleep(self._faults.start_delay_s)
        if container.stopping:
            return -1
        await self._spawn(container)
        return await container.wait()

    async def close(self) -> None:
        """Wait for the end of every container, and start no more."""
        self._closed = True
        while self._lives:
            await asyncio.wait(set(self._lives))
