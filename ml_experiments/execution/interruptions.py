"""What cuts a run short in its own process: its soft timeout, and an interrupt.

Both are exceptions in the experiment, which may catch them to save what it has. So both are noted
here too: a run that was cut short did not simply succeed, whatever it made of the exception.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ml_experiments.errors import SoftTimeout


@dataclass
class Interruption:
    """An interrupt or a soft timeout.

    Attributes:
        fired: The signal arrived.
        is_watched: False outside the main thread, where Python can't install a handler.
        is_over: Set when signals that still arrive shall do nothing.
    """

    fired: bool = False
    is_watched: bool = True
    is_over: bool = False


@contextmanager
def soft_timeout(seconds: float | None) -> Iterator[Interruption]:
    """Raise `SoftTimeout` in the block after so many seconds; only the main thread can be."""
    timeout = Interruption()
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield timeout
        return

    def on_alarm(_signum: int, _frame: FrameType | None) -> None:
        timeout.fired = True
        raise SoftTimeout(f"{seconds:g} s have passed; save now, the run is about to be ended")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield timeout
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


_held_from: list[Any] = []  # the handlers that `held_interrupt` stands in for


@contextmanager
def held_interrupt() -> Iterator[Interruption]:
    """Note an interrupt (SIGINT) in the block, which goes on; only the main thread gets any."""
    interrupt = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(_signum: int, _frame: FrameType | None) -> None:
        interrupt.fired = True

    previous = signal.signal(signal.SIGINT, note)
    _held_from.append(previous)
    try:
        yield interrupt
    finally:
        _held_from.pop()
        signal.signal(signal.SIGINT, previous)


@contextmanager
def released_interrupt() -> Iterator[None]:
    """Let an interrupt (SIGINT) do in the block what it did before `held_interrupt`."""
    if not _held_from or threading.current_thread() is not threading.main_thread():
        yield
        return
    held = signal.signal(signal.SIGINT, _held_from[-1])
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, held)


@contextmanager
def handled_interrupts(act: Callable[[], object]) -> Iterator[None]:
    """Call a function for an interrupt (SIGINT) in the block, which goes on.

    The handler before it is called too; the KeyboardInterrupt that it raises is dropped.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            previous(signum, frame)
        act()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def noted_interrupt() -> Iterator[Interruption]:
    """Note an interrupt (SIGINT) in the block; what it does there stays as it was."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield Interruption(is_watched=False)
        return

    interrupt = Interruption()

    def note(signum: int, frame: FrameType | None) -> None:
        if not interrupt.is_over:
            interrupt.fired = True
            previous(signum, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
