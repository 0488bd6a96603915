"""Runs commands in containers, for `modal container exec` and `modal shell`.

On Modal, the machine of a container answers these RPCs; here they are part of the same server.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from grpclib import GRPCError, Status
from grpclib.const import Handler
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router_pb2
from modal_proto.task_command_router_grpc import TaskCommandRouterBase

from modal_emulator.containers.container import Container
from modal_emulator.containers.execution import Execution
from modal_emulator.rpc.protocol_fields import refuse
from modal_emulator.rpc.rpc import Message, Method, readable_errors, send_replies
from modal_emulator.scheduling.background_commits import commit_volumes
from modal_emulator.scheduling.pools import ContainerPools

_POLL_S = 0.005


class CommandRouter:
    """Answers the TaskExec* RPCs, which have a connection and a token of their own."""

    def __init__(self, pools: ContainerPools, url: Callable[[], str]) -> None:
        self._pools = pools
        self._url = url
        self._token = secrets.token_hex(24)
        self._waiting: set[asyncio.Task[None]] = set()

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers by path."""
        names = [name for name in dir(TaskCommandRouterBase) if not name.startswith("_")]
        blank = type("Blank", (TaskCommandRouterBase,), dict.fromkeys(names))()
        return {
            path: handler._replace(func=partial(self._answer, path.rpartition("/")[2]))
            for path, handler in blank.__mapping__().items()
        }

    async def _answer(self, name: str, stream: Any) -> None:
        given = str(stream.metadata.get("authorization", ""))
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise GRPCError(Status.UNAUTHENTICATED, "This is not the token of this server.")
        method: Method | None = getattr(self, name, None)
        if method is None:
            raise GRPCError(
                Status.UNIMPLEMENTED,
                f"The emulator does not implement {name}: it runs commands in containers, but "
                "has no sandboxes.",
            )
        with readable_errors(name):
            await send_replies(method(await stream.recv_message()), stream)

    def access(self) -> Message:
        """Return the address and the token with which a client reaches these RPCs."""
        return api_pb2.CommandRouterAccess(url=self._url(), jwt=self._token)

    async def TaskGetCommandRouterAccess(self, request: Message) -> Message:
        self._container(request.task_id)
        access = self.access()
        return api_pb2.TaskGetCommandRouterAccessResponse(url=access.url, jwt=access.jwt)

    def _container(self, task_id: str) -> Container:
        container = self._pools.container(task_id)
        if container is None or container.stopping:
            raise GRPCError(Status.NOT_FOUND, f"Container '{task_id}' not found")
        return container

    def _execution(self, request: Any) -> Execution:
        container = self._pools.container(request.task_id)
        found = container.executions.get(request.exec_id) if container else None
        if found is None:
            message = f"Command '{request.exec_id}' not found in '{request.task_id}'"
            raise GRPCError(Status.NOT_FOUND, message)
        return found

    async def TaskExecStart(self, request: Message) -> Message:
        container = self._container(request.task_id)
        refuse("The command", [request])
        if not request.command_args:
            raise GRPCError(Status.INVALID_ARGUMENT, "There is no command.")
        # the client repeats a request whose answer it did not get
        if request.exec_id not in container.executions:
            await self._start(container, request)
        return router_pb2.TaskExecStartResponse()

    async def _start(self, container: Container, request: Any) -> None:
        pty = request.pty_info if request.HasField("pty_info") else None
        terminal = (pty.winsz_rows, pty.winsz_cols) if pty else None
        execution = container.executions[request.exec_id] = Execution(terminal=terminal)
        try:
            while not (container.pid and container.sandbox.has_entered(container.pid)):
                self._container(container.task_id)
                await asyncio.sleep(_POLL_S)
            command = container.sandbox.argv_beside(
                container.pid, list(request.command_args), request.workdir
            )
            await execution.start(command, _environment(container, pty))
        except BaseException:
            del container.executions[request.exec_id]
            await execution.finish()
            raise
        if request.timeout_secs:
            asyncio.get_running_loop().call_later(request.timeout_secs, execution.kill)
        task = asyncio.create_task(self._see_through(container, execution))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _see_through(self, container: Container, execution: Execution) -> None:
        await execution.wait()
        # before the end of its output, at which `modal shell` ends its app and the container
        await asyncio.to_thread(commit_volumes, container)
        await execution.finish()

    async def TaskExecStdioRead(self, request: Message) -> AsyncIterator[Message]:
        execution = self._execution(request)
        stderr = router_pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        stream = execution.stderr if request.file_descriptor == stderr else execution.stdout
        async for data in stream.read(request.offset):
            yield router_pb2.TaskExecStdioReadResponse(data=data)

    async def TaskExecStdinWrite(self, request: Message) -> Message:
        await self._execution(request).write(request.offset, request.data, eof=request.eof)
        return router_pb2.TaskExecStdinWriteResponse()

    async def TaskExecPoll(self, request: Message) -> Message:
        return router_pb2.TaskExecPollResponse(**_status(self._execution(request)))

    async def TaskExecWait(self, request: Message) -> Message:
        execution = self._execution(request)
        await execution.ended.wait()
        return router_pb2.TaskExecWaitResponse(**_status(execution))


def _status(execution: Execution) -> dict[str, int]:
    """Return how a command ended, in the fields of a reply; none if it runs."""
    if not execution.ended.is_set():
        return {}
    code = execution.exit_code
    return {"code": code} if code >= 0 else {"signal": -code}


def _environment(container: Container, pty: Any) -> dict[str, str]:
    """Return the variables of a container, with those of the client's terminal."""
    environment = dict(container.environment)
    if pty is not None:
        names = ("TERM", "COLORTERM", "TERM_PROGRAM")
        values = {name: getattr(pty, f"env_{name.lower()}") for name in names}
        environment |= {name: value for name, value in values.items() if value}
    return environment
