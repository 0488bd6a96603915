"""The control of a server over HTTP, for other processes and other languages.

`GET /control/NAME` calls the method of `StateReader` with that name, with the query's parameters
as arguments; `POST /control/NAME` calls the method of `Control`, with the arguments as a JSON
object. Both answer in JSON, and need the header `Authorization: Bearer <MODAL_TOKEN_SECRET>`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from aiohttp import web

from modal_emulator.control.control import Control
from modal_emulator.control.state_reader import StateReader


def serve_control(app: web.Application, control: Control, token_secret: str) -> None:
    """Add the control's routes to the HTTP endpoint."""

    async def answer(request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token_secret}".encode()):
            raise web.HTTPUnauthorized(
                text="Send the header Authorization: Bearer <MODAL_TOKEN_SECRET>."
            )
        name = request.path.rpartition("/")[2]
        body = await request.text()
        try:
            arguments = json.loads(body) if body else dict(request.query)
            result = getattr(control, name)(**arguments)
        except (LookupError, TypeError, ValueError) as e:
            raise web.HTTPBadRequest(text=f"{name}: {e}") from e
        return web.json_response(result, dumps=partial(json.dumps, default=asdict))

    for name in _public_methods(StateReader):
        app.router.add_get(f"/control/{name}", answer)
    for name in _public_methods(Control):
        app.router.add_post(f"/control/{name}", answer)


def _public_methods(owner: type) -> Iterator[str]:
    return (name for name in vars(owner) if not name.startswith("_"))
