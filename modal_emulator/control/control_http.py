"""The control of a server over HTTP, for other processes and other languages.

`GET /control/{functions,calls,containers,apps,images}` and `/control/logs?app_id=…` return JSON;
`POST /control/NAME` with a JSON object of arguments calls the method of `Control` with that name.
Each request carries `Authorization: Bearer <MODAL_TOKEN_SECRET>`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from modal_emulator.control.control import Control

ACTIONS = (
    "preempt",
    "kill",
    "preempt_input",
    "kill_input",
    "delay_starts",
    "fail_rpc",
    "delay_rpc",
    "fail_image_builds",
    "limit_gpu",
    "limit_volume",
    "clear_faults",
)
VIEWS = ("functions", "calls", "containers", "apps", "images")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve_control(app: web.Application, control: Control, token_secret: str) -> None:
    """Add the control's routes to the HTTP endpoint."""

    def guarded(handler: _Handler) -> _Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token_secret}".encode()):
                raise web.HTTPUnauthorized(
                    text="Send the header Authorization: Bearer <MODAL_TOKEN_SECRET>."
                )
            return await handler(request)

        return checked

    for name in VIEWS:
        app.router.add_get(f"/control/{name}", guarded(_view(control, name)))
    app.router.add_get("/control/logs", guarded(_logs(control)))
    for name in ACTIONS:
        app.router.add_post(f"/control/{name}", guarded(_action(control, name)))


def _view(control: Control, name: str) -> _Handler:
    async def view(_request: web.Request) -> web.Response:
        return web.json_response([asdict(each) for each in getattr(control.inspection, name)()])

    return view


def _logs(control: Control) -> _Handler:
    async def logs(request: web.Request) -> web.Response:
        lines = control.inspection.logs(request.query.get("app_id", ""))
        return web.json_response([asdict(each) for each in lines])

    return logs


def _action(control: Control, name: str) -> _Handler:
    async def action(request: web.Request) -> web.Response:
        text = await request.text()
        try:
            arguments: Any = json.loads(text) if text else {}
            if not isinstance(arguments, dict):
                raise TypeError("the arguments are not a JSON object")
            result = getattr(control, name)(**arguments)
        except (LookupError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"{name}: {error}") from error
        return web.json_response(result)

    return action
