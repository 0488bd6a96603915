"""Passes inputs to containers, and handles their outputs, retries and cancellations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from modal._serialization import serialize
from modal_proto import api_pb2

from modal_emulator.apps.apps import DEPLOYED, AppRecord, Apps
from modal_emulator.apps.calls import (
    FAILURE,
    INTERNAL_FAILURE,
    TERMINATED,
    TIMEOUT,
    Call,
    Calls,
    Input,
    failed,
)
from modal_emulator.apps.functions import Functions, RunnableFunction
from modal_emulator.apps.logs import Logs
from modal_emulator.containers.container import Container, EndReason
from modal_emulator.rpc.faults import Faults
from modal_emulator.scheduling.crashes import MAX_CRASHES, describe_crash
from modal_emulator.scheduling.pools import ContainerPool, ContainerPools

_DEFAULT_IDLE_S = 60.0
_CANCEL_GRACE_S = 10.0
_CANCELLED = "The function call was cancelled."
_STOPPED = "The app was stopped."
# the other reasons are not a fault of the inputs that a container runs
_CRASHED: tuple[EndReason, ...] = ("", "killed", "out_of_memory")


class Scheduler:
    """Schedules inputs, from the call through a container to the output."""

    def __init__(
        self,
        pools: ContainerPools,
        functions: Functions,
        apps: Apps,
        calls: Calls,
        faults: Faults,
        logs: Logs,
        *,
        scale: Callable[[ContainerPool], None],
        scale_all: Callable[[], None],
        on_done: Callable[[AppRecord], None],
        preempt: Callable[[Container, float], None],
        kill: Callable[[Container], None],
    ) -> None:
        self._pools = pools
        self._functions = functions
        self._apps = apps
        self._calls = calls
        self._faults = faults
        self._logs = logs
        self._scale = scale
        self._scale_all = scale_all
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        self._on_done = on_done
        self._preempt = preempt
        self._kill = kill

    def close(self) -> None:
        """Ignore the ends of containers from now on; the next server ends unfinished inputs."""
        self._closed = True

    # -- inputs ----------------------------------------------------------------------------------

    def enqueue(self, function_id: str, items: list[Input]) -> None:
        """Add inputs to those that wait for a container."""
        pool = self._pools.get(function_id)
        pool.add(items)
        self._scale(pool)

    def call_without_arguments(self, function: RunnableFunction) -> str:
        """Call a function as a schedule does, and return the id of the call."""
        request = api_pb2.FunctionMapRequest(
            function_id=function.function_id,
            function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
        )
        call = self._calls.create(request, function.app_id)
        arguments = api_pb2.FunctionInput(
            args=serialize(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE, final_input=True
        )
        item = api_pb2.FunctionPutInputsItem(idx=0, input=arguments)
        self.enqueue(function.function_id, [self._calls.add_input(call, item)])
        return call.call_id

    async def next_inputs(
        self, container: Container, batch_size: int, linger_s: float
    ) -> list[Input]:
        """Wait for inputs for a container; return none if it should exit."""
        pool = self._pools.get(container.function.function_id)
        if not container.ready:
            container.ready = True
            self._scale_all()
        if not container.leads:
            return await self._input_of_cluster(pool, container)
        settings = container.definition.autoscaler_settings
        idle_s = settings.scaledown_window or _DEFAULT_IDLE_S
        idle_at = time.monotonic() + idle_s
        while not container.stopping:
            if pool.waiting:
                await self._linger(pool, batch_size, linger_s)
                if taken := self._take(pool, container, max(batch_size, 1)):
                    return taken
                continue
            left_s = idle_at - time.monotonic()
            if left_s <= 0:
                containers = len(pool.live) * container.function.cluster_size
                if not container.running and containers > settings.min_containers:
                    container.end("idle")
                    break
                left_s = idle_s
                idle_at = time.monotonic() + idle_s
            await pool.changed.wait(left_s)
        return []

    async def _input_of_cluster(self, pool: ContainerPool, container: Container) -> list[Input]:
        """Wait for an input that the first container of a cluster has taken for all."""
        while not container.inbox and not container.stopping:
            await pool.changed.wait(_DEFAULT_IDLE_S)
        return [container.inbox.popleft()] if container.inbox else []

    async def _linger(self, pool: ContainerPool, batch_size: int, linger_s: float) -> None:
        ends_at = time.monotonic() + linger_s
        while len(pool.waiting) < batch_size and (left_s := ends_at - time.monotonic()) > 0:
            await pool.changed.wait(left_s)

    def _take(self, pool: ContainerPool, container: Container, count: int) -> list[Input]:
        if container.stopping:
            return []
        taken = [pool.waiting.popleft() for _ in range(min(count, len(pool.waiting)))]
        definition = container.definition
        for item in taken:
            item.attempts += 1
            item.starts += 1
            item.task_id, item.started_at = container.task_id, time.time()
            for each in container.gang:
                each.running[item.input_id] = item
                each.inputs_taken += 1
                if each is not container:
                    each.inbox.append(item)
            self._timers[item.input_id] = asyncio.get_running_loop().call_later(
                definition.timeout_secs, self._on_timeout, container, item
            )
            self._inject_fault(container)
        if taken and (definition.single_use_containers or definition.max_inputs == 1):
            # it exits after this input
            for each in container.gang:
                each.stopping = True
        if len(container.gang) > 1:
            pool.changed.notify()
        return taken

    def _inject_fault(self, container: Container) -> None:
        fault = self._faults.next_input()
        if fault is None:
            return
        loop = asyncio.get_running_loop()
        if fault.kind == "preempt":
            loop.call_later(fault.after_s, self._preempt, container, fault.grace_s)
        else:
            loop.call_later(fault.after_s, self._kill, container)

    # -- outputs ---------------------------------------------------------------------------------

    def put_outputs(self, container: Container, outputs: Iterable[Any]) -> None:
        """Handle the outputs of a container."""
        container.read_output()
        pool = self._pools.get(container.function.function_id)
        for output in outputs:
            item = container.running.pop(output.input_id, None)
            if item is None or not container.leads:
                # timed out or cancelled in the meantime; or what Modal discards, too
                continue
            result = output.result
            if result.status == TERMINATED and not result.exception:
                result.exception = _CANCELLED
            pool.crashes.add_output()
            self._finish_or_retry(item, result, output.data_format)
        self._scale(pool)

    def _on_timeout(self, container: Container, item: Input) -> None:
        limit_s = container.definition.timeout_secs
        container.read_output()
        container.running.pop(item.input_id, None)
        container.end("timeout")
        container.kill()
        message = f"Task's current input {item.input_id} hit its timeout of {limit_s}s"
        self._finish_or_retry(item, failed(TIMEOUT, message))

    def _finish_or_retry(self, item: Input, result: Any, data_format: int = 0) -> None:
        """Finish an input, or retry it if its function has retries left."""
        self._stop_timer(item)
        retriable = result.status in (FAILURE, TIMEOUT)
        policy = self._functions.runnable(item.call.function_id).first.retry_policy
        if not retriable or item.cancelled or item.attempts > policy.retries:
            self._finish(item, result, data_format)
            return
        factor = (policy.backoff_coefficient or 1.0) ** (item.attempts - 1)
        delay_ms = policy.initial_delay_ms * factor
        delay_s = min(delay_ms, policy.max_delay_ms or delay_ms) / 1000
        asyncio.get_running_loop().call_later(delay_s, self._retry, item)

    def _retry(self, item: Input) -> None:
        if not item.done:
            self.enqueue(item.call.function_id, [item])

    def _finish(self, item: Input, result: Any, data_format: int = 0) -> None:
        self._stop_timer(item)
        if not item.done:
            self._calls.finish(item, result, data_format)
            self._on_done(self._apps.get(item.call.app_id))

    def _stop_timer(self, item: Input) -> None:
        timer = self._timers.pop(item.input_id, None)
        if timer is not None:
            timer.cancel()

    # -- ends of containers and calls ------------------------------------------------------------

    def on_exit(
        self, pool: ContainerPool, container: Container, exit_code: int, error: str
    ) -> None:
        """Handle the exit of a container: rerun or finish the inputs that it ran."""
        if self._closed:
            return
        container.stopping = True
        self._end_cluster_of(container, exit_code)
        if not container.leads:
            container.running = {}  # its leader's, which run again
            return
        app = self._apps.get(container.function.app_id)
        lost, container.running = list(container.running.values()), {}
        again = []
        for item in lost:
            self._stop_timer(item)
            if not app.running:
                self._finish(item, failed(TERMINATED, _STOPPED))
            elif item.cancelled:
                self._finish(item, failed(TERMINATED, _CANCELLED))
            else:
                # doesn't count as one of its retries
                item.attempts -= 1
                again.append(item)
        pool.add_first(again)
        if error:
            message = f"The container of {container.function.name} did not start: it {error}."
            self._give_up(pool, container, failed(INTERNAL_FAILURE, message))
        elif container.end_reason == "startup_timeout" and not container.ready:
            limit_s = container.startup_limit_s
            message = f"{container.function.name} was not ready {limit_s} s after its start."
            self._give_up(pool, container, failed(TIMEOUT, message))
        elif container.end_reason in _CRASHED and (lost or not container.ready):
            self._on_crash(pool, container, app, exit_code)

    def _end_cluster_of(self, container: Container, exit_code: int) -> None:
        """End the other containers of a cluster, which go on with nothing without this one."""
        if not container.leads:
            leader = container.gang[0]
            # one that is being ended may still save what it has
            if not leader.ended_at and not leader.end_reason:
                leader.startup_error = leader.startup_error or container.startup_error
                if leader.running or not leader.ready:
                    leader.kill()  # and its inputs run again, as after a crash
                else:
                    leader.end("idle")
            return
        for other in container.gang[1:]:
            other.end(container.end_reason)
            if exit_code == 0:
                other.kill_after(_CANCEL_GRACE_S)
            elif not other.ended_at:
                other.kill()

    def _on_crash(
        self,
        pool: ContainerPool,
        container: Container,
        app: AppRecord,
        exit_code: int,
    ) -> None:
        """Count a crash; for an ephemeral app with too many, the waiting inputs fail."""
        pool.crashes.add_crash(container.function.definition_id)
        gives_up = app.state != DEPLOYED and pool.crashes.are_too_many()
        self._logs.append_system_line(
            app.app_id,
            f"{describe_crash(container, exit_code)}.",
            task_id=container.task_id,
            function_id=container.function.function_id,
            base_function_id=container.function.base_id,
        )
        if gives_up:
            pool.crashes.forget()
            message = (
                f"{describe_crash(container, exit_code)}, "
                f"as {MAX_CRASHES - 1} others did shortly before.\n{container.last_output}"
            )
            result = container.startup_error or failed(INTERNAL_FAILURE, message)
            self._give_up(pool, container, result)

    def _give_up(self, pool: ContainerPool, container: Container, result: Any) -> None:
        pool.broken_definition_id = container.function.definition_id
        items = list(pool.waiting)
        pool.waiting.clear()
        for item in items:
            self._finish(item, result)

    def fail_start(self, container: Container, result: Any) -> None:
        """Handle an error in the imports or `enter` methods of a function."""
        container.startup_error = result
        container.stopping = True

    def cancel(self, call: Call, *, terminate_containers: bool) -> None:
        """Cancel the unfinished inputs of a call, and the calls that they have made."""
        pool = self._pools.get(call.function_id)
        for item in list(call.inputs.values()):
            if item.done:
                continue
            item.cancelled = True
            container = pool.running(item)
            if container is None:
                if item in pool.waiting:
                    pool.waiting.remove(item)
                self._finish(item, failed(TERMINATED, _CANCELLED))
            elif terminate_containers:
                container.end("cancelled")
                container.kill()
            else:
                for each in container.gang:
                    each.cancel_inputs([item.input_id])
                asyncio.get_running_loop().call_later(
                    _CANCEL_GRACE_S, self._kill_if_running, container, item
                )
            for child in list(self._calls.children(item.input_id)):
                self.cancel(child, terminate_containers=terminate_containers)

    def _kill_if_running(self, container: Container, item: Input) -> None:
        if item.input_id in container.running:
            container.end("cancelled")
            container.kill()

    def end_calls(self, app: AppRecord) -> None:
        """End all calls of an app that is stopped."""
        for call in list(self._calls.of_app(app.app_id)):
            for item in list(call.inputs.values()):
                self._finish(item, failed(TERMINATED, _STOPPED))
        for pool in self._pools.all():
            if self._functions.get(pool.function_id).app_id == app.app_id:
                pool.waiting.clear()
