"""Templates and workers seen from outside: started, spoken to, ended with all that they started."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import select
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_experiments.errors import BackendError
from ml_experiments.execution.worker.messages import WorkerSetup
from ml_experiments.execution.worker.starting import (
    current_search_path,
    start_process,
    take_early,
)
from ml_experiments.settings import worker_environment

END_LIMIT_S = 5.0
_READ_SIZE = 1 << 16
_MAX_OUTPUT_TAIL = 2000


def start_template(experiment: str, import_paths: tuple[str, ...]) -> TemplateProcess:
    """Start a template before there is a backend, while what that needs is imported here."""
    return TemplateProcess(experiment, import_paths, None, current_search_path())


class TemplateProcess:
    """A process that imports one experiment's module and forks workers.

    Args:
        experiment: The class path.
        import_paths: Folders that its modules are imported from.
        threads: OMP_NUM_THREADS, unless the user has set it.
        search_path: What to add at the end of `sys.path`.

    Raises:
        BackendError: If the system has no room for another process.
    """

    def __init__(
        self,
        experiment: str,
        import_paths: tuple[str, ...],
        threads: int | None,
        search_path: tuple[str, ...],
    ) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        with _system_limits():
            started = take_early(search_path) or start_process(search_path)
        self._process, self._connection, self._output, _ = started
        self._guards: weakref.WeakSet[GuardProcess] = weakref.WeakSet()
        message = {
            "load": experiment,
            "import_paths": list(import_paths),
            "environment": worker_environment(None, threads),
        }
        _send(self._connection, message)

    @property
    def is_alive(self) -> bool:
        """Whether the process lives."""
        return self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, negative for a signal; None while it lives."""
        return self._process.poll()

    def output_tail(self) -> str:
        """Return the end of what the import has printed, such as the report of a crash."""
        size = os.fstat(self._output.fileno()).st_size
        data = os.pread(self._output.fileno(), _MAX_OUTPUT_TAIL, max(0, size - _MAX_OUTPUT_TAIL))
        return data.decode("utf-8", "replace").strip()

    def start_guard(self, *, executes: bool) -> GuardProcess:
        """Start what starts workers; returns at once.

        Args:
            executes: Whether they execute runs.

        Raises:
            BackendError: If too many files are open.
        """
        with _system_limits():
            connection, theirs = socket.socketpair()
        # a process that has died is noticed by its guards, which never start
        with theirs, self._lock:
            _send(self._connection, {"guard": True, "executes": executes}, theirs.fileno())
        guard = GuardProcess(connection, self._threads)
        self._guards.add(guard)
        return guard

    def close(self) -> None:
        """End the process, once its guards and idle workers have ended."""
        self._connection.close()  # first: it ends at once if it still imports
        for guard in list(self._guards):
            guard.close()
        self._output.close()
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class GuardProcess:
    """A process that starts workers, one after the other.

    Args:
        connection: The connection to it.
        threads: OMP_NUM_THREADS, unless the user has set it.
    """

    def __init__(self, connection: socket.socket, threads: int | None) -> None:
        self._connection: socket.socket | None = connection
        self._threads = threads
        self._worker: WorkerProcess | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it still starts workers, as far as is known."""
        return self._connection is not None

    def start_worker(
        self, output: Path, folder: Path | None, secrets: tuple[str, ...], gpu: str | None
    ) -> WorkerProcess:
        """Start a worker, once the one before has ended; returns at once.

        Args:
            output: Where its output goes.
            folder: The run folder of its first run, if it executes runs.
            secrets: What is taken out of the output when this process is gone.
            gpu: CUDA_VISIBLE_DEVICES, when there is one.

        Raises:
            BackendError: If too many files are open.
        """
        try:
            working_dir = str(Path.cwd())
        except FileNotFoundError:
            working_dir = None
        setup = WorkerSetup(
            output=str(output),
            folder=str(folder) if folder else None,
            secrets=secrets,
            environment=worker_environment(gpu, self._threads),
            working_dir=working_dir,
        )
        with _system_limits():
            channel, worker_end = socket.socketpair()
        with worker_end:
            self._send({"start": dataclasses.asdict(setup)}, worker_end.fileno())
        self._worker = WorkerProcess(channel, self)
        return self._worker

    def wait(self, limit_s: float) -> dict[str, Any] | None:
        """Return its message, if one comes in time; there's one for each worker that has ended."""
        if self._connection is None or not _poll(limit_s, self._connection):
            return None
        data = _receive(self._connection)
        if not data:  # it was killed
            self.abandon()
            return None
        message: dict[str, Any] = json.loads(data)  # so short that it comes in one piece
        return message

    def kill_worker(self) -> None:
        """End its worker and all that the worker started; `wait` returns when they have ended."""
        self._send({"kill": True})

    def connections(self) -> tuple[socket.socket, ...]:
        """Return what becomes readable when its worker ends."""
        return () if self._connection is None else (self._connection,)

    def close(self) -> None:
        """Let it end, with an idle worker."""
        if self._worker is not None:
            self._worker.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the connection: it ends everything by itself."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        if self._connection is not None:
            _send(self._connection, message, *descriptors)


class WorkerProcess:
    """One worker process, and the connection to it.

    Attributes:
        exit_code: What it ended with, negative for a signal; None if unknown, as when its guard
            was killed, too.
        has_ended: Whether it has, and all that it had started.
    """

    def __init__(self, channel: socket.socket, guard: GuardProcess) -> None:
        self._channel: socket.socket | None = channel
        self._guard = guard
        self._received = b""
        self._start_error: OSError | None = None
        self.exit_code: int | None = None
        self.has_ended = False

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; a worker that has ended is noticed when its messages are read."""
        if self._channel is not None:
            _send(self._channel, message)

    def read(self, limit_s: float) -> list[dict[str, Any]]:
        """Return the messages that arrived, after waiting for the first at most so long.

        Raises:
            EOFError: If the worker has ended and all its messages were read.
            BackendError: If the system had no room for another process.
        """
        channel = () if self._channel is None else (self._channel,)
        ready = _poll(0 if self.has_ended else limit_s, *channel, *self._guard.connections())
        lines = []
        if self._channel is not None and self._channel.fileno() in ready:
            data = _receive(self._channel)
            *lines, self._received = (self._received + data).split(b"\n")
            if not data:
                self._close_channel()
        elif self.has_ended:
            # nothing more arrives, though a process that left the guard may hold the other end
            self._close_channel()
            if self._start_error is not None:
                with _system_limits():
                    raise self._start_error
            raise EOFError
        if not self.has_ended:
            self.wait(0)
        return [json.loads(line) for line in lines]

    def wait(self, limit_s: float) -> bool:
        """Wait for the worker and all that it started to end; return whether they have."""
        if not self.has_ended:
            message = self._guard.wait(limit_s)
            if message is not None and message.get("errno") is not None:
                self._start_error = OSError(message["errno"], os.strerror(message["errno"]))
            self.exit_code = message["ended"] if message else None
            self.has_ended = message is not None or not self._guard.is_alive
        return self.has_ended

    def kill(self) -> None:
        """End the worker and all that it started, at once."""
        if not self.has_ended:
            self._guard.kill_worker()
            if not self.wait(END_LIMIT_S):
                self._guard.abandon()
        self.has_ended = True
        self._close_channel()

    def close(self) -> None:
        """Let an idle worker end by itself, with what it started; make sure that it has."""
        if not self.has_ended and self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self.wait(END_LIMIT_S)
        self.kill()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


@contextmanager
def _system_limits() -> Iterator[None]:
    """Say which limit of the system keeps a process from being started."""
    try:
        yield
    except OSError as e:
        mend = {
            errno.EMFILE: "raise the limit of open files (ulimit -n, it is "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} now), or lower max_workers",
            errno.EAGAIN: "raise the limit of processes (ulimit -u, it is "
            f"{resource.getrlimit(resource.RLIMIT_NPROC)[0]} now), or lower max_workers",
            errno.ENOMEM: "free some memory, or lower max_workers",
        }.get(e.errno or 0, "`ml-experiments doctor` checks the installation")
        raise BackendError(
            f"no process for the run can be started: {e.strerror or e}; {mend}"
        ) from e


def _poll(limit_s: float, *connections: socket.socket) -> set[int]:
    """Return which connections can be read without waiting, by their descriptors."""
    poll = select.poll()  # not select(), which knows no descriptor above 1,023
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(limit_s * 1000)}


def _receive(connection: socket.socket) -> bytes:
    """Return what has arrived; nothing when the other side has closed."""
    try:
        return connection.recv(_READ_SIZE)
    except OSError:  # reset
        return b""


def _send(connection: socket.socket, message: dict[str, Any], *descriptors: int) -> None:
    """Send a message; that the other side has ended is noticed where something is read."""
    data = json.dumps(message).encode() + b"\n"
    with contextlib.suppress(OSError):
        sent = socket.send_fds(connection, [data], descriptors) if descriptors else 0
        connection.sendall(data[sent:])
