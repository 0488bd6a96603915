"""The HTTP server, through which the client transfers what is too large for gRPC."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from urllib.parse import quote, urlencode

from aiohttp import web


class HttpEndpoint:
    """An HTTP server whose URLs carry a signature, so that they can't be guessed."""

    def __init__(self) -> None:
        self.app = web.Application()
        self.url = ""
        self._key = secrets.token_bytes(32)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on a port, or on a free one if it is 0."""
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        listener = socket.create_server((host, port), backlog=512)
        # without this, each small reply waits for the client's delayed acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await web.SockSite(self._runner, listener).start()
        self.url = f"http://{host}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening and close the connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def signed_url(self, path: str, **query: str | int) -> str:
        """Return the URL of a path, with a signature that only this server can make."""
        parameters = {name: str(value) for name, value in query.items()}
        parameters["signature"] = self._signature(path, parameters)
        return f"{self.url}{quote(path)}?{urlencode(parameters)}"

    def require_signature(self, request: web.Request) -> None:
        """Refuse a request unless its URL comes from `signed_url`."""
        parameters = dict(request.query)
        signature = parameters.pop("signature", "")
        if not hmac.compare_digest(signature, self._signature(request.path, parameters)):
            raise web.HTTPForbidden(text="This URL was not issued by this server, or was changed.")

    def _signature(self, path: str, parameters: dict[str, str]) -> str:
        signed = "\n".join([path, *(f"{name}={parameters[name]}" for name in sorted(parameters))])
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()
