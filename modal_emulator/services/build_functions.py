"""Runs the function of `Image.run_function` during a build, in a container of its base image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from modal_proto import api_pb2

from modal_emulator.apps.calls import SUCCESS, Calls
from modal_emulator.apps.functions import Functions
from modal_emulator.apps.logs import Logs
from modal_emulator.containers.launch import Launcher
from modal_emulator.objects.images import BuildError
from modal_emulator.objects.layers import Layer
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.scheduler import Scheduler

_CHECK_END_S = 0.02


class BuildFunctions:
    """Runs build functions."""

    def __init__(
        self,
        functions: Functions,
        calls: Calls,
        logs: Logs,
        pools: ContainerPools,
        scheduler: Scheduler,
        launcher: Launcher,
    ) -> None:
        self._functions = functions
        self._calls = calls
        self._logs = logs
        self._pools = pools
        self._scheduler = scheduler
        self._launcher = launcher

    async def run(
        self, function_id: str, arguments: Any, layer: Layer, log: Callable[[str], None]
    ) -> None:
        """Run a function in a container that changes a layer.

        Raises:
            BuildError: If the function fails.
        """
        record = self._functions.get(function_id)
        request = api_pb2.FunctionMapRequest(
            function_id=function_id,
            function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
        )
        self._launcher.building[function_id] = layer
        try:
            call = self._calls.create(request, record.app_id)
            put = api_pb2.FunctionPutInputsItem(idx=0, input=arguments)
            item = self._calls.add_input(call, put)
            self._scheduler.enqueue(function_id, [item])
            while not item.done:
                await call.changed.wait(None)
            await self._end_containers(function_id)
        finally:
            del self._launcher.building[function_id]
        if item.status != SUCCESS:
            for line in self._logs.of(record.app_id):
                if line.function_id == function_id:
                    log(line.text)
            reason = item.output.result.exception
            log(f"{reason}\n")
            raise BuildError(f"The function of run_function failed: {reason}")

    async def _end_containers(self, function_id: str) -> None:
        """Let the containers exit, after which the layer has what they have written."""
        pool = self._pools.get(function_id)
        while pool.containers:
            for container in pool.live:
                container.end("idle")
            await asyncio.sleep(_CHECK_END_S)
