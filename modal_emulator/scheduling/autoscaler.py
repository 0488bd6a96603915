"""Starts the containers that are needed for waiting inputs, and waits for their ends."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

from grpclib import GRPCError

from modal_emulator.apps.apps import DEPLOYED, AppRecord, Apps
from modal_emulator.apps.functions import Functions, RunnableFunction
from modal_emulator.apps.logs import Logs
from modal_emulator.containers.container import Container
from modal_emulator.containers.launch import Placement, new_address
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.gpus import GpuRequest
from modal_emulator.scheduling.pools import ContainerPool, ContainerPools
from modal_emulator.storage.ids import new_id

log = logging.getLogger(__name__)

Spawn = Callable[[Container], Awaitable[None]]
OnExit = Callable[[ContainerPool, Container, int, str], None]
OnRemoved = Callable[[AppRecord], None]


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
        on_removed: OnRemoved,
        run_dir: Path,
    ) -> None:
        self._pools = pools
        self._functions = functions
        self._apps = apps
        self._logs = logs
        self._faults = faults
        self._spawn = spawn
        self._run_dir = run_dir
        self._tasks: set[asyncio.Task[None]] = set()
        # function id -> ids of the calls whose logs have a line that they wait for a GPU
        self._reported: defaultdict[str, set[str]] = defaultdict(set)
        # one per core, because starting a container takes CPU time
        self._max_starting = max(2, os.cpu_count() or 1)
        self._closed = False
        self._on_exit = on_exit
        self._on_removed = on_removed

    def scale_all(self) -> None:
        """Scale every pool, after a change of what they share."""
        for pool in self._pools.all():
            self.scale(pool)

    def scale_function(self, function_id: str) -> None:
        """Scale the pool of a function, after a change of its settings."""
        self.scale(self._pools.get(function_id))

    def keep_warm(self, app: AppRecord) -> None:
        """Start the minimum of containers of an app's functions."""
        for function_id in app.function_ids.values():
            self.scale_function(function_id)

    def keep_deployed_warm(self) -> None:
        """Start the minimum of containers of every deployed app."""
        for app in self._apps.all():
            if app.state == DEPLOYED:
                self.keep_warm(app)

    def scale(self, pool: ContainerPool) -> None:
        """Start the containers that a pool needs, and end those with an old definition."""
        record = self._functions.get(pool.function_id)
        running = self._apps.get(record.app_id).running
        if self._closed or not running or not self._functions.is_defined(record):
            return
        function = self._functions.runnable(pool.function_id)
        for container in pool.live:
            if container.function.definition_id != function.definition_id:
                container.end("outdated")
        missing = self._missing(pool, function)
        if missing > 0 and (wait_s := self._back_off_s(pool, function)):
            asyncio.get_running_loop().call_later(wait_s, self.scale, pool)
            return
        for _ in range(missing):
            if self._start(pool, function) is None:
                return

    def start_shell(self, function: RunnableFunction) -> Container | None:
        """Start the container of a `modal shell`; return None if no GPU is free for it."""
        container = self._start(self._pools.shells, function)
        if container is not None:
            # it takes no inputs
            container.ready = True
        return container

    def _back_off_s(self, pool: ContainerPool, function: RunnableFunction) -> float:
        """Return how long to wait before the next container of a function that crashes."""
        if self._apps.get(function.app_id).state != DEPLOYED:
            return 0.0
        return pool.crashes.wait_s(function.definition_id)

    def _missing(self, pool: ContainerPool, function: RunnableFunction) -> int:
        """Return how many containers, or clusters of them, are to be started."""
        settings, size = function.first.autoscaler_settings, function.cluster_size
        live = len(pool.live)
        without_slot = max(0, len(pool.waiting) - pool.free_slots)
        wanted = live + math.ceil(without_slot / function.slots)
        if pool.waiting or any(each.running for each in pool.live):
            wanted += settings.buffer_containers // size
        if pool.broken_definition_id != function.definition_id and not function.refused:
            wanted = max(wanted, settings.min_containers // size)
        wanted = min(wanted, max(1, function.max_containers // size))
        containers = self._pools.containers()
        starting = sum(1 for each in containers if not each.ready and not each.stopping)
        allowed = self._max_starting - starting
        # More are started when these are ready, if they are still needed. A pool without a
        # container gets one at once, because another function may wait for its result.
        return min(wanted - live, allowed if live else max(allowed, 1))

    def _start(self, pool: ContainerPool, function: RunnableFunction) -> Container | None:
        free = self._free_gpu(function)
        if free is None:
            self._report_waiting(pool, function)
            return None
        gang, cluster_id = [], new_id("cu") if function.cluster_size > 1 else ""
        for _ in range(function.cluster_size):
            task_id = new_id("ta")
            address = new_address() if function.first.i6pn_enabled else ""
            place = Placement(task_id, *free, self._run_dir / task_id[-8:], address)
            container = Container(function, place, self._logs, pool.changed)
            gang.append(container)
        for container in gang:
            container.gang, container.cluster_id = gang, cluster_id
            pool.containers[container.task_id] = container
            log.info("container %s of %s starts", container.task_id, function.name)
            task = asyncio.create_task(self._run(pool, container))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return gang[0]

    def _report_waiting(self, pool: ContainerPool, function: RunnableFunction) -> None:
        """Write to the logs of each call, once, that no GPU is free for it."""
        # a container of the minimum can wait for a GPU without a call
        call_ids = dict.fromkeys(item.call.call_id for item in pool.waiting) or {"": None}
        gpus = [gpu for gpu in function.gpus if gpu is not None]
        wanted = " or ".join(gpu.in_words for gpu in gpus)
        free = "none is free" if all(gpu.count == 1 for gpu in gpus) else "too few are free"
        for call_id in call_ids:
            if call_id in self._reported[pool.function_id]:
                continue
            self._logs.append_system_line(
                function.app_id,
                f"{function.name} is waiting for {wanted}: {free}.",
                function_id=function.function_id,
                base_function_id=function.base_id,
                call_id=call_id,
            )
        self._reported[pool.function_id] = set(call_ids)

    def _free_gpu(self, function: RunnableFunction) -> tuple[int, GpuRequest | None] | None:
        """Return the first rank for which there is a GPU, with that GPU (None if it needs none)."""
        used = Counter[str]()
        for container in self._pools.containers():
            if container.place.gpu is not None:
                used[container.place.gpu.device] += container.place.gpu.count
        for rank, request in enumerate(function.gpus):
            if request is None:
                return rank, None
            for gpu in request.candidates:
                capacity = self._faults.gpu_capacity(gpu.device)
                count = gpu.count * function.cluster_size
                if capacity is None or used[gpu.device] + count <= capacity:
                    return rank, gpu
        return None

    async def _run(self, pool: ContainerPool, container: Container) -> None:
        exit_code, error = -1, ""
        try:
            exit_code = await self._start_and_wait(container)
        except GRPCError as e:
            error = str(e.message)
        except Exception as e:
            # any error is reported to the callers whose inputs wait for the container
            log.exception("container %s could not be started", container.task_id)
            error = f"{type(e).__name__}: {e}"
        container.ended_at = time.time()
        container.read_output()
        self._on_exit(pool, container, exit_code, error)
        await container.clean_up()
        log.info(
            "container %s of %s ended: %s",
            container.task_id,
            container.function.name,
            container.end_reason or f"exit code {exit_code}",
        )
        # after the clean-up, because an app counts as stopped when it has no containers
        del pool.containers[container.task_id]
        self._pools.ended.append(container)
        self.scale_all()
        self._on_removed(self._apps.get(container.function.app_id))

    async def _start_and_wait(self, container: Container) -> int:
        if self._faults.start_delay_s:
            await asyncio.sleep(self._faults.start_delay_s)
        if container.stopping:
            return -1
        await self._spawn(container)
        exit_code = await container.wait()
        if container.sandbox.cgroup is not None and container.sandbox.cgroup.has_killed():
            container.end("out_of_memory")
        return exit_code

    async def close(self) -> None:
        """Start no more containers, and wait for the end of all."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
