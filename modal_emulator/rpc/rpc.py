"""Combines the services into one gRPC server, and checks every call."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import cache, partial
from typing import Any
from urllib.parse import quote

import grpclib.server
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.exceptions import StreamTerminatedError
from modal._utils.grpc_utils import SERVER_WARNING_HEADER, custom_detail_codec
from modal_proto.api_grpc import ModalClientBase

from modal_emulator.rpc.caller import Caller, current_caller
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.versions import UnsupportedModalError, check_version

log = logging.getLogger(__name__)

# a message of the protocol, and a value of one of its enums
Message = Any
EnumValue = Any
# returns the reply to a request, None if there is none, or yields several replies
Method = Callable[[Message], Awaitable[Message] | AsyncGenerator[Message]]

# not retried by the client, as CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and UNKNOWN are
_UNEXPECTED_ERROR = Status.ABORTED


class Guard:
    """Runs around every RPC: checks of token, version and environment, faults, readable errors."""

    def __init__(
        self,
        token_id: str,
        token_secret: str,
        faults: Faults,
        check_environment: Callable[[str], object],
        check_container: Callable[[str, str], object],
    ) -> None:
        self._token = (token_id, token_secret)
        self._faults = faults
        self._check_environment = check_environment
        self._check_container = check_container

    async def call(self, task_id: str | None, name: str, method: Method, stream: Any) -> None:
        """Run one RPC for a client (`task_id` None) or for a container."""
        caller = _caller(task_id, stream)
        if task_id is None:
            secret = str(stream.metadata.get("x-modal-token-secret", ""))
            self._authenticate(caller.token_id, secret)
            self._check_client(caller.client_version)
        else:
            self._check_container(task_id, name)
        current_caller.set(caller)
        await self._faults.before_rpc(name)
        with readable_errors(name):
            request = await stream.recv_message()
            # the names in a request are looked up in its environment, so that is checked first
            if "environment_name" in request.DESCRIPTOR.fields_by_name:
                self._check_environment(request.environment_name)
            await send_replies(method(request), stream)
            await _send_warnings(caller.warnings, stream)

    def _authenticate(self, *given: str) -> None:
        if not hmac.compare_digest("\0".join(given).encode(), "\0".join(self._token).encode()):
            raise GRPCError(
                Status.UNAUTHENTICATED,
                "This is not the emulator's token. Each start of the emulator makes a new one: use "
                "the MODAL_TOKEN_ID and MODAL_TOKEN_SECRET that it prints, or run the command "
                "under `ml-experiments emulator run -- COMMAND`.",
            )

    def _check_client(self, client_version: str) -> None:
        try:
            check_version(client_version, "The calling program uses")
        except UnsupportedModalError as e:
            raise GRPCError(Status.FAILED_PRECONDITION, str(e)) from e


def _caller(task_id: str | None, stream: Any) -> Caller:
    # grpclib has no public identifier of a connection
    return Caller(
        id(stream._stream.connection),
        task_id,
        client_version=str(stream.metadata.get("x-modal-client-version", "")),
        python_version=str(stream.metadata.get("x-modal-python-version", "")),
        token_id=str(stream.metadata.get("x-modal-token-id", "")),
    )


@contextmanager
def readable_errors(rpc_name: str) -> Iterator[None]:
    """Turn an unexpected error into a reply, which says that the server is at fault."""
    try:
        yield
    except (GRPCError, StreamTerminatedError, asyncio.CancelledError):
        raise
    except Exception as e:
        log.exception("%s failed", rpc_name)
        raise GRPCError(
            _UNEXPECTED_ERROR,
            f"The emulator failed in {rpc_name}: {type(e).__name__}: {e}. "
            "This is an error in the emulator, not in your app; "
            "the traceback is in the emulator's log.",
        ) from e


async def send_replies(answer: Awaitable[Message] | AsyncGenerator[Message], stream: Any) -> None:
    """Send what a method returns or yields."""
    if isinstance(answer, AsyncGenerator):
        async with aclosing(answer) as replies:
            async for reply in replies:
                await stream.send_message(reply)
    elif (reply := await answer) is not None:
        await stream.send_message(reply)


async def _send_warnings(warnings: list[str], stream: Any) -> None:
    if warnings:
        encoded = [(SERVER_WARNING_HEADER, quote(message)) for message in warnings]
        await stream.send_trailing_metadata(metadata=encoded)


def rpc_names() -> list[str]:
    """Return the names of all RPCs of the modal client."""
    return [name for name in dir(ModalClientBase) if not name.startswith("_")]


def _unimplemented(name: str) -> Method:
    async def method(_request: Message) -> Message:
        log.warning("%s is not implemented", name)
        raise GRPCError(
            Status.UNIMPLEMENTED,
            f"The emulator does not implement {name}. It emulates functions, classes, apps, "
            "images, volumes, secrets, dicts, queues, web endpoints and shells; "
            "not sandboxes or tunnels.",
        )

    return method


def compose(services: Iterable[object]) -> dict[str, Method]:
    """Return the method that answers each RPC of the client, by RPC name.

    Raises:
        TypeError: If two services answer the same RPC.
    """
    methods: dict[str, Method] = {}
    owners: dict[str, str] = {}
    names = rpc_names()
    for service in services:
        for name in names:
            method = getattr(service, name, None)
            if method is None:
                continue
            owner = type(service).__name__
            if name in owners:
                raise TypeError(f"{name} is answered by {owners[name]} and by {owner}")
            owners[name] = owner
            methods[name] = method
    return {name: methods.get(name) or _unimplemented(name) for name in names}


class Servicer:
    """The RPCs in the form that grpclib needs, for clients or for one container."""

    def __init__(self, methods: dict[str, Method], guard: Guard, task_id: str | None) -> None:
        self._methods = methods
        self._guard = guard
        self._task_id = task_id

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers by path."""
        handlers = {}
        for path, name, template in _paths():
            function = partial(self._guard.call, self._task_id, name, self._methods[name])
            handlers[path] = template._replace(func=function)
        return handlers


@cache
def _paths() -> list[tuple[str, str, Handler]]:
    """Return the path, the name and a handler without a function for every RPC."""
    blank = type("Blank", (ModalClientBase,), dict.fromkeys(rpc_names()))()
    handlers = blank.__mapping__().items()
    return [(path, path.rpartition("/")[2], handler) for path, handler in handlers]


class RpcServer(grpclib.server.Server):  # type: ignore[misc] # grpclib has no types
    """A grpclib server that reports when a connection is lost."""

    def __init__(
        self, servicers: Sequence[Any], on_lost: Callable[[int], None] | None = None
    ) -> None:
        # the client decodes the details of errors with the same codec
        super().__init__(
            servicers,
            codec=grpclib.encoding.proto.ProtoCodec(),
            status_details_codec=custom_detail_codec,
        )
        self._on_lost = on_lost

    def _protocol_factory(self) -> Any:
        protocol = super()._protocol_factory()
        if self._on_lost is not None:
            lost, on_lost = protocol.connection_lost, self._on_lost

            def connection_lost(error: BaseException | None) -> None:
                connection_id = id(getattr(protocol, "connection", None))
                lost(error)
                on_lost(connection_id)

            protocol.connection_lost = connection_lost
        return protocol
