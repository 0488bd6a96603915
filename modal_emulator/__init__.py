"""A local Modal server, with which the unmodified modal client runs apps on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modal_emulator.emulator import Emulator

__all__ = ["Emulator"]


def __getattr__(name: str) -> object:
    if name == "Emulator":
        from modal_emulator.emulator import Emulator

        return Emulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
