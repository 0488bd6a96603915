"""Web endpoints: HTTP on the loopback interface, answered by functions in containers."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.calls import Call, Calls, Input
from modal_emulator.apps.functions import Functions, web_methods
from modal_emulator.objects.blobs import BlobStore
from modal_emulator.rpc.rpc import Message
from modal_emulator.scheduling.scheduler import Scheduler
from modal_emulator.services.asgi import is_websocket, response_headers, scope_of
from modal_emulator.services.class_parameters import parameters_from_query

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 1 << 16
_MAX_REQUEST_BYTES = 4 << 30  # as Modal documents it


class WebEndpoints:
    """Listens on one port for each web endpoint, and passes requests to containers."""

    def __init__(
        self,
        functions: Functions,
        apps: Apps,
        calls: Calls,
        scheduler: Scheduler,
        blobs: BlobStore,
        *,
        token_id: str,
        token_secret: str,
    ) -> None:
        self._functions = functions
        self._apps = apps
        self._calls = calls
        self._scheduler = scheduler
        self._blobs = blobs
        self._credentials = (token_id, token_secret)
        self._runners: list[web.AppRunner] = []

    async def open(self, function_id: str, definition: Any) -> None:
        """Listen for the web endpoints of a definition that have no address yet."""
        for method in web_methods(definition):
            if (function_id, method) in self._functions.web_urls:
                continue
            listener = socket.create_server((_LOOPBACK, 0))
            port = listener.getsockname()[1]
            self._functions.web_urls[function_id, method] = f"http://{_LOOPBACK}:{port}"
            await self._listen(listener, function_id, method)

    async def open_deployed(self) -> None:
        """Listen for the web endpoints of all deployed apps, after a restart."""
        for app in self._apps.all():
            if not app.running:
                continue
            for function_id in app.function_ids.values():
                await self.open(function_id, self._functions.runnable(function_id).first)

    async def close(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, listener: socket.socket, function_id: str, method: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._answer(request, function_id, method)

        application = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        application.router.add_route("*", "/{path:.*}", answer)
        # auto_decompress: containers get the body as it was sent
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=1.0,
            handler_cancellation=True,
            auto_decompress=False,
        )
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, listener).start()

    async def _answer(
        self, request: web.Request, function_id: str, method: str
    ) -> web.StreamResponse:
        record = self._functions.get(function_id)
        app = self._apps.get(record.app_id)
        if not app.running or function_id not in app.function_ids.values():
            return web.Response(status=404, text=f"{record.name} is of an app that is stopped.\n")
        definition = self._functions.runnable(function_id).first
        config = web_methods(definition).get(method)
        if config is None:
            return web.Response(status=404, text=f"{record.name} is no web endpoint any more.\n")
        if config.requires_proxy_auth and not self._is_authorized(request):
            return web.Response(status=401, text="Modal-Key and Modal-Secret are required.\n")
        if schema := definition.class_parameter_info.schema:
            try:
                parameters = parameters_from_query(schema, request.query)
            except ValueError as e:
                return web.Response(status=400, text=f"{e}\n")
            record = self._functions.variant(record, parameters, None)
        call, item = self._start(request, record.function_id, app.app_id, method)
        exchange = Exchange(call, item, self._blobs)
        try:
            if is_websocket(request):
                return await exchange.websocket(request)
            return await exchange.http(request)
        finally:
            if not item.done:
                exchange.put(
                    api_pb2.Asgi(websocket_disconnect=api_pb2.Asgi.WebsocketDisconnect(code=1001))
                    if is_websocket(request)
                    else api_pb2.Asgi(http_disconnect=api_pb2.Asgi.HttpDisconnect())
                )

    def _is_authorized(self, request: web.Request) -> bool:
        given = (request.headers.get("Modal-Key"), request.headers.get("Modal-Secret"))
        return given == self._credentials

    def _start(
        self, request: web.Request, function_id: str, app_id: str, method: str
    ) -> tuple[Call, Input]:
        call = self._calls.create(
            api_pb2.FunctionMapRequest(
                function_id=function_id,
                function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
                function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            ),
            app_id,
        )
        payload = api_pb2.FunctionInput(
            args=pickle.dumps(((scope_of(request),), {})),
            data_format=api_pb2.DATA_FORMAT_PICKLE,
            method_name=method,
        )
        item = self._calls.add_input(call, api_pb2.FunctionPutInputsItem(idx=0, input=payload))
        self._scheduler.enqueue(function_id, [item])
        return call, item


class Exchange:
    """One request to a container, and what it answers."""

    def __init__(self, call: Call, item: Input, blobs: BlobStore) -> None:
        self._call = call
        self._item = item
        self._blobs = blobs

    def put(self, message: Message) -> None:
        """Send an ASGI message to the container."""
        chunk = api_pb2.DataChunk(
            data_format=api_pb2.DATA_FORMAT_ASGI,
            data=message.SerializeToString(),
            index=len(self._call.data_in) + 1,
        )
        self._call.data_in.append(chunk)
        self._call.changed.notify()

    async def _messages(self) -> AsyncIterator[Message]:
        """Yield the ASGI messages of the container, until the input is done."""
        taken = 0
        while True:
            done = self._item.done
            while taken < len(self._call.data_out):
                chunk = self._call.data_out[taken]
                taken += 1
                blob = chunk.data_blob_id
                data = self._blobs.path(blob).read_bytes() if blob else chunk.data
                yield api_pb2.Asgi.FromString(data)
            if done:
                return
            if taken == len(self._call.data_out):
                await self._call.changed.wait(None)

    async def _send_body(self, request: web.Request) -> None:
        async for data in request.content.iter_chunked(_CHUNK_BYTES):
            body = api_pb2.Asgi.HttpRequest(body=data, more_body=True)
            self.put(api_pb2.Asgi(http_request=body))
        self.put(api_pb2.Asgi(http_request=api_pb2.Asgi.HttpRequest(more_body=False)))

    async def http(self, request: web.Request) -> web.StreamResponse:
        """Pass an HTTP request to the container, and its response back as it comes."""
        sending = asyncio.create_task(self._send_body(request))
        response: web.StreamResponse | None = None
        try:
            async for message in self._messages():
                kind = message.WhichOneof("type")
                if kind == "http_response_start":
                    start = message.http_response_start
                    response = web.StreamResponse(status=start.status)
                    for name, value in response_headers(start.headers):
                        response.headers.add(name, value)
                    await response.prepare(request)
                elif kind == "http_response_body" and response is not None:
                    await response.write(message.http_response_body.body)
                    if not message.http_response_body.more_body:
                        await response.write_eof()
                        return response
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return response or web.Response(status=500, text=self._failure())

    def _failure(self) -> str:
        result = self._item.output.result if self._item.output is not None else None
        reason = result.exception if result is not None and result.exception else "no response"
        return f"The function did not answer: {reason}\n"

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """Connect a WebSocket to the container."""
        self.put(api_pb2.Asgi(websocket_connect=api_pb2.Asgi.WebsocketConnect()))
        connection: web.WebSocketResponse | None = None
        receiving: asyncio.Task[None] | None = None
        try:
            async for message in self._messages():
                kind = message.WhichOneof("type")
                if kind == "websocket_accept":
                    chosen = message.websocket_accept.subprotocol
                    connection = web.WebSocketResponse(protocols=[chosen] if chosen else [])
                    await connection.prepare(request)
                    receiving = asyncio.create_task(self._receive(connection))
                elif connection is None:
                    return web.Response(status=403)
                elif kind == "websocket_send":
                    sent = message.websocket_send
                    if sent.HasField("text"):
                        await connection.send_str(sent.text)
                    else:
                        await connection.send_bytes(sent.bytes)
                elif kind == "websocket_close":
                    end = message.websocket_close
                    await connection.close(code=end.code or 1000, message=end.reason.encode())
                    return connection
        finally:
            if receiving is not None:
                receiving.cancel()
        if connection is None:
            return web.Response(status=500, text=self._failure())
        await connection.close(code=1011)
        return connection

    async def _receive(self, connection: web.WebSocketResponse) -> None:
        async for received in connection:
            message = api_pb2.Asgi.WebsocketReceive()
            if received.type == aiohttp.WSMsgType.TEXT:
                message.text = received.data
            else:
                message.bytes = received.data
            self.put(api_pb2.Asgi(websocket_receive=message))
        code = connection.close_code or 1005
        self.put(api_pb2.Asgi(websocket_disconnect=api_pb2.Asgi.WebsocketDisconnect(code=code)))
