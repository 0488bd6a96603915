"""Answers the RPCs of containers, each of which has its own connection."""

from __future__ import annotations

import time

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.calls import Calls
from modal_emulator.containers.container import Container
from modal_emulator.rpc.caller import current_caller
from modal_emulator.rpc.rpc import Message
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.scheduler import Scheduler
from modal_emulator.scheduling.termination import Termination

# the deadline of the container is 15 s
_HEARTBEAT_POLL_S = 10.0


class ContainerService:
    """Answers Container*, Task* and the container's half of the Function* RPCs."""

    def __init__(
        self,
        pools: ContainerPools,
        calls: Calls,
        apps: Apps,
        scheduler: Scheduler,
        termination: Termination,
    ) -> None:
        self._pools = pools
        self._calls = calls
        self._apps = apps
        self._scheduler = scheduler
        self._termination = termination

    def _caller(self) -> Container:
        task_id = current_caller.get().task_id
        container = self._pools.container(task_id) if task_id else None
        if container is None:
            raise GRPCError(Status.PERMISSION_DENIED, "Only a running container may call this.")
        return container

    def _container(self, task_id: str) -> Container:
        container = self._pools.container(task_id)
        if container is None:
            raise GRPCError(Status.NOT_FOUND, f"Container '{task_id}' not found")
        return container

    async def ContainerHello(self, _request: Message) -> Message:
        """Start the startup timeout: Python and modal are loaded, the user's code is next."""
        self._caller().limit_startup()
        return Empty()

    async def ContainerHeartbeat(self, _request: Message) -> Message:
        """Reply when inputs of this container are cancelled, or after some seconds."""
        container = self._caller()
        ends_at = time.monotonic() + _HEARTBEAT_POLL_S
        while not container.cancelled_input_ids and (left_s := ends_at - time.monotonic()) > 0:
            await container.cancellations.wait(left_s)
        response = api_pb2.ContainerHeartbeatResponse()
        if container.cancelled_input_ids:
            response.cancel_input_event.input_ids.extend(container.cancelled_input_ids)
            container.cancelled_input_ids = []
        return response

    async def TaskClusterHello(self, request: Message) -> Message:
        """Reply with the addresses of a cluster's containers once all of them have started."""
        container = self._caller()
        container.cluster_address = request.container_ip
        changed = self._pools.get(container.function.function_id).changed
        changed.notify()
        while not all(each.cluster_address for each in container.gang):
            await changed.wait(_HEARTBEAT_POLL_S)
        addresses = [each.cluster_address for each in container.gang]
        return api_pb2.TaskClusterHelloResponse(
            cluster_id=container.cluster_id,
            cluster_rank=container.gang.index(container),
            container_ips=addresses,
            container_ipv4_ips=[address.removeprefix("::ffff:") for address in addresses],
        )

    async def ClusterGet(self, request: Message) -> Message:
        found = [each for each in self._pools.containers() if each.cluster_id]
        gang = [each for each in found if each.cluster_id == request.cluster_id]
        if not gang:
            raise GRPCError(Status.NOT_FOUND, f"Cluster '{request.cluster_id}' not found")
        stats = api_pb2.ClusterStats(
            app_id=gang[0].function.app_id,
            task_ids=[each.task_id for each in gang[0].gang],
            cluster_id=request.cluster_id,
            started_at=min(each.started_at for each in gang),
        )
        return api_pb2.ClusterGetResponse(cluster=stats)

    async def FunctionGetInputs(self, request: Message) -> Message:
        container = self._caller()
        items = await self._scheduler.next_inputs(
            container, request.batch_max_size, request.batch_linger_ms / 1000
        )
        response = api_pb2.FunctionGetInputsResponse()
        for item in items:
            response.inputs.add(
                input_id=item.input_id,
                input=item.payload,
                function_call_id=item.call.call_id,
                function_call_invocation_type=item.call.invocation_type,
                # by which the container distinguishes a rerun from a repeated delivery
                retry_count=item.attempts - 1,
                function_map_idx=item.idx,
            )
        if not items:
            response.inputs.add(kill_switch=True)
        return response

    async def FunctionPutOutputs(self, request: Message) -> Message:
        self._scheduler.put_outputs(self._caller(), request.outputs)
        return Empty()

    async def FunctionCallPutDataOut(self, request: Message) -> Message:
        self._caller()
        call = self._calls.get(request.function_call_id)
        last = call.data_out[-1].index if call.data_out else 0
        # the rerun of a preempted generator yields everything again
        call.data_out.extend(chunk for chunk in request.data_chunks if chunk.index > last)
        call.changed.notify()
        return Empty()

    async def TaskResult(self, request: Message) -> Message:
        """Handle an error outside of any input: at the start or exit of the container."""
        container = self._caller()
        if not container.ready:
            self._scheduler.fail_start(container, request.result)
        return Empty()

    async def TaskCurrentInputs(self, _request: Message) -> Message:
        return api_pb2.TaskCurrentInputsResponse(input_ids=list(self._caller().running))

    async def FunctionGetDynamicConcurrency(self, request: Message) -> Message:
        self._caller()
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency)

    async def ContainerStop(self, request: Message) -> Message:
        self._termination.stop_container(
            self._container(request.task_id), graceful=request.graceful
        )
        return api_pb2.ContainerStopResponse()

    async def TaskList(self, request: Message) -> Message:
        response = api_pb2.TaskListResponse()
        environment = self._apps.resolve_environment(request.environment_name)
        for container in self._pools.containers():
            app = self._apps.get(container.function.app_id)
            if request.app_id and app.app_id != request.app_id:
                continue
            if not request.app_id and app.environment != environment:
                continue
            response.tasks.add(
                task_id=container.task_id,
                app_id=app.app_id,
                app_description=app.description,
                started_at=container.started_at,
                enqueued_at=container.created_at,
            )
        return response

    async def TaskGetInfo(self, request: Message) -> Message:
        """Describe a container, also one that has ended: its logs stay."""
        ended = (each for each in self._pools.ended if each.task_id == request.task_id)
        container = next(ended, None) or self._container(request.task_id)
        gpu = container.place.gpu
        info = api_pb2.TaskInfo(
            id=container.task_id,
            started_at=container.started_at,
            enqueued_at=container.created_at,
            finished_at=container.ended_at,
            gpu_type=gpu.device if gpu else "",
        )
        if gpu:
            info.gpu_config.CopyFrom(api_pb2.GPUConfig(gpu_type=gpu.device, count=gpu.count))
        return api_pb2.TaskGetInfoResponse(app_id=container.function.app_id, info=info)
