"""Processes that have a file open, mapped into memory or locked while a test looks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

MAP = """
import mmap, sys
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
file.close()
"""
OPEN = "import sys; file = open(sys.argv[1], 'rb')"
LOCK = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1]); lock.acquire()
"""


@contextlib.contextmanager
def held_by_process(code: str, *arguments: str) -> Iterator[None]:
    """Run Python code in a process of its own from its first line of output to the end."""
    command = [sys.executable, "-c", code + "\nprint('ready', flush=True)\ninput()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            running.communicate(b"\n")
