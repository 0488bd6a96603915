"""The caller of the current RPC: a client or a container."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Caller:
    """The caller of an RPC; `task_id` is the container's id, and None for a client.

    The client shows `warnings`, which travel with the reply.
    """

    connection_id: int
    task_id: str | None = None
    client_version: str = ""
    python_version: str = ""
    token_id: str = ""
    warnings: list[str] = field(default_factory=list)


current_caller: ContextVar[Caller] = ContextVar("current_caller")


def warn_client(message: str) -> None:
    """Show a warning to the user of the client that has called."""
    current_caller.get().warnings.append(message)
