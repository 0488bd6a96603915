"""The terminal's bell, which most terminals turn into a notification of the desktop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONG_S = 60.0


@contextmanager
def bell_when_long() -> Iterator[None]:
    """Ring the bell of the terminal when the block has ended after more than a minute."""
    began_at = time.monotonic()
    try:
        yield
    finally:
        if time.monotonic() - began_at > LONG_S and sys.stderr.isatty():
            sys.stderr.write("\a")
            sys.stderr.flush()
