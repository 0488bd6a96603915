"""The caller of the current RPC: a client or a container."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """The caller of an RPC; `task_id` is the container's id, and None for a client."""

    connection_id: int
    task_id: str | None = None
    client_version: str = ""
    token_id: str = ""


current_caller: ContextVar[Caller] = ContextVar("current_caller")
