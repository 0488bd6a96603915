"""Differences between the protocols of the supported modal versions."""

from __future__ import annotations

from typing import Any


def known_fields(message_type: Any, **fields: Any) -> dict[str, Any]:
    """Return those fields that a message has in the installed version of modal."""
    known = message_type.DESCRIPTOR.fields_by_name
    return {name: value for name, value in fields.items() if name in known}
