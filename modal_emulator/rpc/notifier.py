"""Wakes coroutines that wait for a change."""

from __future__ import annotations

import asyncio


class Notifier:
    """A condition that any number of coroutines can wait for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake every coroutine that waits."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None) -> None:
        """Wait for the next `notify()`, or until the timeout."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
