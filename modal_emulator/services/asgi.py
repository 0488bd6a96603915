"""ASGI messages as they travel to and from containers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

# of one connection, not of the whole response
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}


def scope_of(request: web.Request) -> dict[str, Any]:
    """Return the ASGI scope of an HTTP or WebSocket request."""
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    scope = {
        "http_version": f"{request.version.major}.{request.version.minor}",
        "path": request.rel_url.path,
        "query_string": request.rel_url.raw_query_string.encode(),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": tuple(peer[:2]) if peer else None,
    }
    if is_websocket(request):
        wanted = request.headers.get("Sec-WebSocket-Protocol", "")
        subprotocols = [each.strip() for each in wanted.split(",") if each.strip()]
        return {"type": "websocket", "scheme": "ws", "subprotocols": subprotocols, **scope}
    extensions: dict[str, Any] = {"http.response.trailers": {}}
    http = {"type": "http", "scheme": "http", "method": request.method, "extensions": extensions}
    return {**http, **scope}


def is_websocket(request: web.Request) -> bool:
    """Return whether a request opens a WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


def response_headers(flat: Iterable[bytes]) -> list[tuple[str, str]]:
    """Return the headers of a response, without those that are about the connection."""
    parts = list(flat)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in pairs
        if name.lower() not in _HOP_BY_HOP
    ]
