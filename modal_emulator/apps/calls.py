"""Function calls: their inputs, outputs and generator data."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.rpc import EnumValue, Message
from modal_emulator.storage.ids import new_id
from modal_emulator.storage.state import State

Result = api_pb2.GenericResult
SUCCESS = Result.GENERIC_STATUS_SUCCESS
FAILURE = Result.GENERIC_STATUS_FAILURE
TERMINATED = Result.GENERIC_STATUS_TERMINATED
TIMEOUT = Result.GENERIC_STATUS_TIMEOUT
INTERNAL_FAILURE = Result.GENERIC_STATUS_INTERNAL_FAILURE

# https://modal.com/docs/guide/job-queue
RESULT_LIFETIME_S = 7 * 24 * 3600.0

STATUS_NAMES = {
    SUCCESS: "success",
    FAILURE: "failure",
    TERMINATED: "terminated",
    TIMEOUT: "timeout",
    INTERNAL_FAILURE: "internal_failure",
}


@dataclass(eq=False)
class Input:
    """One input of a call, with its output once it is done."""

    input_id: str
    idx: int
    call: Call
    # the arguments; None once it is done
    payload: Any
    # attempts that count as retries, and all starts, including those after a preemption
    attempts: int = 0
    starts: int = 0
    task_id: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    output: Any = None
    status: EnumValue = 0
    cancelled: bool = False

    @property
    def done(self) -> bool:
        """Whether it has its final output."""
        return bool(self.status)

    def dump(self) -> bytes:
        """Serialise for the state file, output included."""
        output = self.output
        fields = {
            "call_id": self.call.call_id,
            "idx": self.idx,
            "attempts": self.attempts,
            "starts": self.starts,
            "task_id": self.task_id,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "status": self.status,
            "output": b64encode(output.SerializeToString()).decode() if output else None,
        }
        return json.dumps(fields).encode()


@dataclass(eq=False)
class Call:
    """A function call: one input for remote and spawn, many for map."""

    call_id: str
    function_id: str
    app_id: str
    call_type: EnumValue
    invocation_type: EnumValue
    parent_input_id: str
    created_at: float
    inputs: dict[int, Input] = field(default_factory=dict)
    # in the order in which they finished, which the client's cursor refers to
    finished: list[Input] = field(default_factory=list)
    # what a generator or a web endpoint has yielded, and what a web endpoint's client has sent
    data_out: list[Any] = field(default_factory=list)
    data_in: list[Any] = field(default_factory=list)
    changed: Notifier = field(default_factory=Notifier)

    @property
    def unfinished(self) -> int:
        """How many inputs have no output yet."""
        return len(self.inputs) - len(self.finished)

    @property
    def durable(self) -> bool:
        """Whether the results outlive the caller's connection: for `.spawn`, not for `.remote`."""
        return bool(self.invocation_type == api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC)

    def dump(self) -> bytes:
        """Serialise for the state file, without the inputs."""
        fields = {
            "function_id": self.function_id,
            "app_id": self.app_id,
            "call_type": self.call_type,
            "invocation_type": self.invocation_type,
            "parent_input_id": self.parent_input_id,
            "created_at": self.created_at,
        }
        return json.dumps(fields).encode()


def failed(status: EnumValue, message: str) -> Message:
    """Return a result that comes from the server, not from a container."""
    return api_pb2.GenericResult(status=status, exception=message)


class Calls:
    """All calls by id; spawned ones are stored in the state file."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Input] = {}
        for call_id, data in state.objects("call"):
            self._calls[call_id] = Call(call_id=call_id, **json.loads(data))
        for input_id, data in state.objects("input"):
            self._load_input(input_id, json.loads(data))
        for call in self._calls.values():
            done = (item for item in call.inputs.values() if item.done)
            call.finished = sorted(done, key=lambda item: item.finished_at)
        self._end_unfinished()

    def _load_input(self, input_id: str, fields: dict[str, Any]) -> None:
        call, output = self._calls[fields.pop("call_id")], fields.pop("output")
        item = Input(input_id=input_id, call=call, payload=None, **fields)
        if output is not None:
            item.output = api_pb2.FunctionGetOutputsItem.FromString(b64decode(output))
        call.inputs[item.idx] = item
        self._inputs[input_id] = item

    def _end_unfinished(self) -> None:
        for call in self._calls.values():
            for item in call.inputs.values():
                if not item.done:
                    message = "The emulator was stopped while this input was waiting or running."
                    self.finish(item, failed(INTERNAL_FAILURE, message), 0)

    def all(self) -> list[Call]:
        """Return every call, oldest first."""
        return list(self._calls.values())

    def of_app(self, app_id: str) -> Iterator[Call]:
        """Yield the calls of an app."""
        return (call for call in self._calls.values() if call.app_id == app_id)

    def children(self, input_id: str) -> Iterator[Call]:
        """Yield the calls that an input made."""
        return (call for call in self._calls.values() if call.parent_input_id == input_id)

    def get(self, call_id: str) -> Call:
        """Return a call.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        if call_id not in self._calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call '{call_id}' not found")
        call = self._calls[call_id]
        self._delete_expired(call)
        return call

    def _delete_expired(self, call: Call) -> None:
        oldest = time.time() - RESULT_LIFETIME_S
        for item in takewhile(lambda each: each.finished_at < oldest, call.finished):
            item.output = None
            self._save(item)

    def input(self, input_id: str) -> Input:
        """Return an input.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        if input_id not in self._inputs:
            raise GRPCError(Status.NOT_FOUND, f"Input '{input_id}' not found")
        return self._inputs[input_id]

    def create(self, request: Any, app_id: str) -> Call:
        """Add a call for a `FunctionMapRequest`."""
        call = Call(
            call_id=new_id("fc"),
            function_id=request.function_id,
            app_id=app_id,
            call_type=request.function_call_type,
            invocation_type=request.function_call_invocation_type,
            parent_input_id=request.parent_input_id,
            created_at=time.time(),
        )
        self._calls[call.call_id] = call
        if call.durable:
            self._state.put("call", call.call_id, call.dump())
        return call

    def add_input(self, call: Call, item: Any) -> Input:
        """Add an input to a call."""
        added = Input(new_id("in"), item.idx, call, item.input)
        call.inputs[item.idx] = added
        self._inputs[added.input_id] = added
        self._save(added)
        return added

    def _save(self, item: Input) -> None:
        if item.call.durable:
            self._state.put("input", item.input_id, item.dump())

    def finish(self, item: Input, result: Any, data_format: EnumValue) -> None:
        """Record the final output of an input, and wake the RPCs that wait for it."""
        item.status, item.finished_at = result.status, time.time()
        item.payload = None
        item.output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=item.idx,
            input_id=item.input_id,
            data_format=data_format,
            task_id=item.task_id,
            input_started_at=item.started_at,
            output_created_at=item.finished_at,
            # the server retries, so for the client it is always the first attempt
            retry_count=0,
        )
        item.call.finished.append(item)
        self._save(item)
        item.call.changed.notify()

    def age(self, seconds: float) -> None:
        """Let all results count as older."""
        for item in self._inputs.values():
            if item.done:
                item.finished_at -= seconds
                self._save(item)

    def delete_outputs(self, call: Call) -> None:
        """Delete the outputs of a call, except for what a generator yielded."""
        for item in call.inputs.values():
            item.output = None
            self._save(item)
