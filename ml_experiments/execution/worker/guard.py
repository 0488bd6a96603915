"""The guard of workers: starts one after the other, and ends everything that each leaves behind.

It runs no code of the user's, so nothing that an experiment does keeps it from doing its work. It
is forked from the template and talks to the client over a socket of its own, a JSON object a line:

    from the client   {"start": ...}: see `WorkerSetup`; with the worker's end of its connection
                      {"kill": true}
    to the client     {"ended": exit code}: the worker and all that it started are gone; with an
                      "errno" where it could not be started

When the client is gone, the worker ends its run by itself, as a cancelled one or without a result
(see `RunMessage`). What is still there after a grace period is killed, and secrets are taken out of
the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ml_experiments.execution.worker.messages import WorkerSetup
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import redact_file
from ml_experiments.runs.records import parse_record

CLIENT_GONE_GRACE_S = 5.0
# in the run folder while a worker writes a result though its client is gone
WRITING_MARK = ".writing"
_MAX_WRITING_S = 600.0
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1


class Guard:
    """Starts workers, and watches each until it and all its descendants have ended.

    Args:
        connection: The connection to the client.
        start: Starts a worker that serves a connection; it returns its id, and 0 in the worker
            itself where that is forked.
    """

    def __init__(
        self, connection: socket.socket, start: Callable[[WorkerSetup, socket.socket], int]
    ) -> None:
        self._connection = connection
        self._start = start
        self._received = b""
        self._descriptors: list[int] = []

    def serve(self) -> socket.socket:
        """Serve until the client is gone; returns in a forked worker only, its connection."""
        adopt_orphans()
        self._wakeup, self._signals = os.pipe()
        for end in (self._wakeup, self._signals):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        client_is_there, own_pid = True, os.getpid()
        while client_is_there and (message := self._receive()) is not None:
            if "start" not in message:
                continue  # to kill a worker that has just ended
            setup = parse_record(WorkerSetup, message["start"])
            with socket.socket(fileno=self._descriptors.pop(0)) as channel:
                try:
                    pid = self._start(setup, channel)
                except OSError as e:  # no room for another process
                    if os.getpid() != own_pid:
                        raise
                    send_start_error(self._connection, e)
                    continue
                if pid == 0:
                    self._leave()
                    return channel.dup()
            code, client_is_there = self._watch(pid, setup)
            _end_descendants(pid)
            try:
                self._connection.sendall(json.dumps({"ended": code}).encode() + b"\n")
            except OSError:
                client_is_there = False  # gone since, or before
            if not client_is_there:
                with contextlib.suppress(OSError):
                    redact_file(Path(setup.output), Redactor(setup.secrets))
        os._exit(0)

    def _leave(self) -> None:
        """Undo, in the worker, what the guard has set up for itself."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._wakeup, self._signals):
            os.close(descriptor)
        self._connection.close()

    def _watch(self, pid: int, setup: WorkerSetup) -> tuple[int, bool]:
        """Return the worker's exit code, negative for a signal, and whether the client is there."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._connection, select.POLLIN)
        gone_since: float | None = None
        while True:
            code = _reap(pid)
            if code is not None:
                return code, gone_since is None
            poll.poll(None if gone_since is None else 100)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
            if gone_since is None:
                if self._client_is_gone(pid):
                    gone_since = time.monotonic()
                    poll.unregister(self._connection)
            elif _is_over(gone_since, setup.folder):
                _kill(pid)

    def _client_is_gone(self, pid: int) -> bool:
        """Read what the client has sent, if anything."""
        try:
            data = self._connection.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # reset: it died with something unread
            return True
        if data:
            _kill(pid)  # the only message that can come
        return not data

    def _receive(self) -> dict[str, Any] | None:
        while b"\n" not in self._received:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._connection, 1 << 16, 4)
            except OSError:
                return None
            if not data:
                return None
            self._descriptors += descriptors
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def send_start_error(connection: socket.socket, error: OSError) -> None:
    """Report to the client why no process could be started."""
    message = {"ended": None, "errno": error.errno or errno.EAGAIN}
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _is_over(gone_since: float, folder: str | None) -> bool:
    waited_s = time.monotonic() - gone_since
    if folder is not None and (Path(folder) / WRITING_MARK).exists():
        return waited_s > _MAX_WRITING_S
    return waited_s > CLIENT_GONE_GRACE_S


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be ended here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Have this process killed when its parent ends: no worker outlives its guard."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reap(pid: int) -> int | None:
    """Reap all children that have ended; return the exit code of `pid` if it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _end_descendants(pid: int) -> None:
    """Kill what a worker that has ended left behind, also outside its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        for child in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # children of those that are killed become children of this process
        except ChildProcessError:
            return


def end_orphans(kept: Collection[int]) -> None:
    """Kill this process's children but for these, and the children that it then has."""
    while orphans := [pid for pid in children() if pid not in kept]:
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, 0)


def children(parent: int | None = None) -> list[int]:
    """Return the processes whose parent a process is; this one, unless another is named."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{parent or os.getpid()}/task").glob("*/children")  # each thread's
            return [int(pid) for task in tasks for pid in task.read_text().split()]
    import psutil  # where the kernel doesn't list them

    return [child.pid for child in psutil.Process(parent).children()]
