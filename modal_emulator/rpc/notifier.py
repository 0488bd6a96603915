"""A wake-up call for everyone who waits for something to change."""

from __future__ import annotations

import asyncio


class Notifier:
    """Lets any number of coroutines wait for the next `notify()`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake every waiter."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None) -> None:
        """Return at the next announcement, or after the timeout."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
