"""Answers the RPCs by which functions are called."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.calls import (
    FAILURE,
    INTERNAL_FAILURE,
    SUCCESS,
    TERMINATED,
    TIMEOUT,
    Call,
    Calls,
    Input,
)
from modal_emulator.apps.functions import Functions
from modal_emulator.rpc.protocol_fields import not_emulated
from modal_emulator.rpc.rpc import Message
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.scheduler import Scheduler

# the deadline of the client is 55 s
_MAX_POLL_S = 50.0


class CallService:
    """Answers FunctionMap, FunctionPutInputs, FunctionGetOutputs and the FunctionCall* RPCs."""

    def __init__(
        self,
        calls: Calls,
        functions: Functions,
        apps: Apps,
        pools: ContainerPools,
        scheduler: Scheduler,
    ) -> None:
        self._calls = calls
        self._functions = functions
        self._apps = apps
        self._pools = pools
        self._scheduler = scheduler

    async def FunctionMap(self, request: Message) -> Message:
        function = self._functions.get(request.function_id)
        app = self._apps.get(function.app_id)
        if not app.running:
            raise GRPCError(
                Status.FAILED_PRECONDITION,
                f"App {app.app_id} is stopped, so {function.name} cannot be called.",
            )
        if refused := self._functions.runnable(request.function_id).refused:
            raise not_emulated(function.name, refused)
        call = self._calls.create(request, function.app_id)
        response = api_pb2.FunctionMapResponse(
            function_call_id=call.call_id,
            function_call_jwt=call.call_id,
            # the server retries, so that retries outlive the client
            sync_client_retries_enabled=False,
        )
        response.retry_policy.CopyFrom(
            self._functions.runnable(request.function_id).first.retry_policy
        )
        response.pipelined_inputs.extend(self._enqueue(call, request.pipelined_inputs))
        return response

    async def FunctionPutInputs(self, request: Message) -> Message:
        call = self._calls.get(request.function_call_id)
        inputs = self._enqueue(call, request.inputs)
        return api_pb2.FunctionPutInputsResponse(inputs=inputs)

    def _enqueue(self, call: Call, items: Any) -> list[Any]:
        added = [self._calls.add_input(call, item) for item in items]
        self._scheduler.enqueue(call.function_id, added)
        return [
            api_pb2.FunctionPutInputsResponseItem(
                idx=item.idx, input_id=item.input_id, input_jwt=item.input_id
            )
            for item in added
        ]

    async def FunctionGetOutputs(self, request: Message) -> AsyncIterator[Message]:
        call = self._calls.get(request.function_call_id)
        cursor = int(request.last_entry_id.partition("-")[0] or 0)
        ends_at = time.monotonic() + min(request.timeout, _MAX_POLL_S)
        while True:
            found = self._outputs(call, request, cursor)
            left_s = ends_at - time.monotonic()
            if found or left_s <= 0:
                break
            await call.changed.wait(left_s)
        response = api_pb2.FunctionGetOutputsResponse(
            outputs=[item.output for item in found],
            idxs=[item.idx for item in found],
            last_entry_id=f"{max(cursor, len(call.finished))}-0",
            num_unfinished_inputs=call.unfinished,
        )
        yield response
        # only now, so that no output is lost if the reply could not be sent
        if request.clear_on_success and (found or request.timeout == 0) and not call.unfinished:
            self._calls.delete_outputs(call)

    def _outputs(self, call: Call, request: Any, cursor: int) -> list[Input]:
        found = [item for item in call.finished[cursor:] if item.output is not None]
        if request.HasField("start_idx"):
            found = [item for item in found if item.idx >= request.start_idx]
        if request.HasField("end_idx"):
            found = [item for item in found if item.idx <= request.end_idx]
        return found

    async def FunctionCallFromId(self, request: Message) -> Message:
        call = self._calls.get(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.call_id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                app_id=call.app_id, function_id=call.function_id
            ),
        )

    async def FunctionCallGetInfo(self, request: Message) -> Message:
        call = self._calls.get(request.function_call_id)
        return api_pb2.FunctionCallGetInfoResponse(info=call_info(call))

    async def FunctionCallList(self, request: Message) -> Message:
        self._functions.get(request.function_id)
        infos = [
            call_info(call) for call in self._calls.all() if call.function_id == request.function_id
        ]
        return api_pb2.FunctionCallListResponse(function_calls=infos)

    async def FunctionCallCancel(self, request: Message) -> Message:
        call = self._calls.get(request.function_call_id)
        self._scheduler.cancel(call, terminate_containers=request.terminate_containers)
        return Empty()

    async def FunctionGetCurrentStats(self, request: Message) -> Message:
        self._functions.get(request.function_id)
        return self._pools.stats(request.function_id)

    async def FunctionGetCallGraph(self, request: Message) -> Message:
        """Return a call and every call below it."""
        response = api_pb2.FunctionGetCallGraphResponse()
        waiting = [self._calls.get(request.function_call_id)]
        while waiting:
            call = waiting.pop(0)
            function = self._functions.get(call.function_id)
            module_name = self._functions.current_data(function).module_name
            response.function_calls.add(
                function_call_id=call.call_id,
                parent_input_id=call.parent_input_id,
                function_name=function.name,
                module_name=module_name,
            )
            for item in call.inputs.values():
                response.inputs.add(
                    input_id=item.input_id,
                    status=item.status,
                    function_call_id=call.call_id,
                    task_id=item.task_id,
                )
                waiting.extend(self._calls.children(item.input_id))
        return response

    async def FunctionCallGetDataOut(self, request: Message) -> AsyncIterator[Message]:
        """Yield what a generator function has yielded since `last_index`."""
        call = self._calls.get(request.function_call_id)
        async for chunk in self._chunks(call, call.data_out, request.last_index):
            yield chunk

    async def FunctionCallGetDataIn(self, request: Message) -> AsyncIterator[Message]:
        """Yield what the client of a web endpoint has sent since `last_index`."""
        call = self._calls.get(request.function_call_id)
        async for chunk in self._chunks(call, call.data_in, request.last_index):
            yield chunk

    async def _chunks(
        self, call: Call, chunks: list[Any], last_index: int
    ) -> AsyncIterator[Message]:
        sent = 0
        ends_at = time.monotonic() + _MAX_POLL_S
        while (left_s := ends_at - time.monotonic()) > 0:
            while sent < len(chunks):
                chunk = chunks[sent]
                sent += 1
                if chunk.index > last_index:
                    yield chunk
            await call.changed.wait(left_s)


def call_info(call: Call) -> Any:
    """Return the counts of a call's inputs by outcome."""
    info = api_pb2.FunctionCallInfo(
        function_call_id=call.call_id, created_at=call.created_at, total_inputs=len(call.inputs)
    )
    categories = {
        0: info.pending_inputs,
        SUCCESS: info.succeeded_inputs,
        FAILURE: info.failed_inputs,
        INTERNAL_FAILURE: info.failed_inputs,
        TIMEOUT: info.timeout_inputs,
        TERMINATED: info.cancelled_inputs,
    }
    for item in call.inputs.values():
        category = categories.get(item.status, info.failed_inputs)
        category.total += 1
        category.latest.add(
            input_id=item.input_id,
            idx=item.idx,
            task_id=item.task_id,
            started_at=item.started_at,
            finished_at=item.finished_at,
        )
    return info
