"""Keeping Modal's own display out of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def without_modals_output() -> Iterator[None]:
    """Let apps that are started in the block print nothing by themselves.

    Under `modal run` Modal's display is on for the whole process, and would print the logs of
    a run a second time. There is no public way to turn it off; the tests run with each
    supported version of modal.
    """
    from modal._output.manager import DisabledOutputManager, OutputManager

    before = OutputManager.get()
    OutputManager._set(DisabledOutputManager())
    try:
        yield
    finally:
        OutputManager._set(before)
