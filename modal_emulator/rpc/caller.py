"""Who is calling the RPC that runs now: a client, or which container."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """The connection that an RPC came in on; `task_id` is None for a client."""

    connection_id: int
    task_id: str | None = None
    client_version: str = ""
    token_id: str = ""


current_caller: ContextVar[Caller] = ContextVar("current_caller")
