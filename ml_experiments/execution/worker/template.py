"""The template process: imports an experiment's module once, and forks a guard for each worker.

Started by `process.py`, with one end of a socket pair. It receives, one JSON object a line:

    {"load": class path, "import_paths": [...], "environment": {...}}   first
    {"guard": true, "executes": bool}             with the guard's end of its connection; whether
                                                  its workers execute runs
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_experiments.config.validation import prepare_config_of
from ml_experiments.execution.execute import prepare_process
from ml_experiments.execution.worker.child import Worker, set_up_process
from ml_experiments.execution.worker.ending import keep_finalizers
from ml_experiments.execution.worker.forking import why_not_to_fork
from ml_experiments.execution.worker.guard import (
    Guard,
    adopt_orphans,
    children,
    end_orphans,
    end_with_parent,
    send_start_error,
)
from ml_experiments.execution.worker.messages import WorkerSetup
from ml_experiments.execution.worker.rehearsal import rehearse
from ml_experiments.execution.worker.sources import LoadedSources
from ml_experiments.execution.worker.starting import command_for
from ml_experiments.experiment.importing import load_experiment
from ml_experiments.settings import update_environment, whole_environment

_READ_SIZE = 1 << 16
_WORKER = "ml_experiments.execution.worker.child"
_MAX_IMPORT_OUTPUT = 1 << 20


class Template:
    """Forks workers from a process in which no run has executed."""

    def __init__(self, connection: socket.socket, search_path: list[str]) -> None:
        self._connection = connection
        self._search_path = search_path
        self._received = b""
        self._descriptors: list[int] = []
        self._sources = LoadedSources()
        self._pid = os.getpid()
        self._guards: dict[int, int | None] = {}  # process -> what becomes readable at its end
        self._helpers: list[int] = []  # processes that the import has started
        self._can_fork = True
        self._is_prepared = False
        self._to_preload: tuple[str, ...] = ()
        self._finalizers: list[weakref.finalize[..., Any]] = []
        self._first_environment = whole_environment()

    def serve(self) -> Worker:
        """Serve until the client is gone; returns in a forked worker only."""
        while (message := self._receive()) is not None:
            if "load" in message:
                update_environment(self._first_environment, message["environment"])
                self._first_environment = self._sources.environment = whole_environment()
                self._load(message["load"], tuple(message["import_paths"]))
            else:
                if message["executes"]:
                    self._preload()
                    self._prepare()  # not done yet where no config was checked, as on Modal
                worker = self._start_guard(self._descriptors.pop(0))
                if worker is not None:
                    return worker
                self._prepare()  # meanwhile the config is checked
        self._connection.close()
        for guard in self._guards:  # not all systems have an init that reaps orphans
            os.waitpid(guard, 0)
        end_orphans(())
        for finalizer in reversed(self._finalizers):
            finalizer()
        # no exit handlers: no run has executed here
        os._exit(0)

    def _load(self, experiment: str, import_paths: tuple[str, ...]) -> None:
        self._sources.record_imports()
        # an error is reported by the worker, which tries again
        with _ended_with(self._connection), contextlib.suppress(BaseException):
            with self._sources.noted_exit_handlers(), self._sources.noted_reads():
                target = load_experiment(experiment, import_paths)
            prepare_config_of(target)  # once, for all workers
            self._to_preload = tuple(getattr(target, "preload", ()))
        if os.getpid() != self._pid:
            sys.stdout.flush()
            os._exit(0)  # a process that the module has forked; it answers for nothing
        self._helpers = children()
        self._settle()

    def _prepare(self) -> None:
        """Do once what each worker would do, before it is needed."""
        if self._is_prepared:
            return
        self._is_prepared = True
        prepare_process()
        if self._can_fork:
            with contextlib.suppress(Exception):  # no room on the disk: a run reports that
                rehearse()

    def _preload(self) -> None:
        """Import what the experiment's runs import, once for all of them."""
        if not self._to_preload:
            return
        with _ended_with(self._connection):
            for name in self._to_preload:
                # a run that imports it reports it, and more exactly
                with contextlib.suppress(Exception, SystemExit):
                    importlib.import_module(name)
        self._to_preload = ()
        self._settle()

    def _settle(self) -> None:
        """Get ready to fork, after something was imported."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        gc.collect()
        gc.freeze()  # what is shared with the workers stays out of their collections
        self._finalizers += keep_finalizers()
        # each fork would call the handlers, though what they remove is there once
        self._can_fork = why_not_to_fork() is None and not self._sources.has_exit_handler

    def _start_guard(self, guard_end: int) -> Worker | None:
        """Fork a guard; return the worker in the processes that are forked from that."""
        try:
            pid = os.fork()
        except OSError as e:  # no room for another process
            with socket.socket(fileno=guard_end) as connection:
                send_start_error(connection, e)
            return None
        if pid:
            self._guards[pid] = _notice_of_end(pid)
            os.close(guard_end)
            return None
        os.setsid()
        self._connection.close()
        for notice in filter(None, self._guards.values()):
            os.close(notice)
        start = self._fork_worker if self._can_fork else self._start_worker
        channel = Guard(socket.socket(fileno=guard_end), start).serve()
        return Worker(channel, self._sources)

    def _fork_worker(self, setup: WorkerSetup, _channel: socket.socket) -> int:
        imported = _read_import_output()
        # what a worker collects at its end is its own then: each page that it touches is copied;
        # from Python 3.13 on, cycles that are made after a second freeze are not collected
        if sys.version_info < (3, 13):
            gc.freeze()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            end_with_parent()
            output = _open_output(setup)
            if imported:
                os.write(output, imported)
            for standard in (1, 2):
                os.dup2(output, standard)
            os.close(output)
            # what the import has set stays, unless the client has changed it since
            update_environment(self._first_environment, setup.environment)
            if setup.working_dir is not None:
                with contextlib.suppress(OSError):  # deleted since
                    os.chdir(setup.working_dir)
        return pid

    def _start_worker(self, setup: WorkerSetup, channel: socket.socket) -> int:
        """Start a worker as a new interpreter."""
        output = _open_output(setup)
        folder = setup.working_dir
        worker = subprocess.Popen(
            command_for(_WORKER, self._search_path, f"{channel.fileno()}"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[channel.fileno()],
            env=setup.environment,
            cwd=folder if folder and Path(folder).is_dir() else None,
            start_new_session=True,
        )
        os.close(output)
        worker.returncode = 0  # the guard reaps it
        return worker.pid

    def _reap(self) -> None:
        """Reap guards that have ended, and end what one that was killed has left behind."""
        was_killed = False
        for pid, notice in list(self._guards.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                was_killed = was_killed or status != 0
                del self._guards[pid]
                if notice is not None:
                    os.close(notice)
        if was_killed:
            end_orphans((*self._guards, *self._helpers))

    def _receive(self) -> dict[str, Any] | None:
        while b"\n" not in self._received:
            poll = select.poll()
            for readable in (self._connection.fileno(), *filter(None, self._guards.values())):
                poll.register(readable, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll()}
            self._reap()
            if self._connection.fileno() not in ready:
                continue
            try:
                data, descriptors, _, _ = socket.recv_fds(self._connection, _READ_SIZE, 16)
            except OSError:
                return None
            if not data:
                return None
            self._descriptors += descriptors
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


@contextlib.contextmanager
def _ended_with(connection: socket.socket) -> Iterator[None]:
    """End this process and all that it started if the client goes while the block executes.

    Other code ends when it next waits for the client; an import may take for ever. What watches is
    another process, for an import may also hold the interpreter's lock for ever.
    """
    close, kill, wait, template = os.close, os.kill, os.waitpid, os.getpid()  # as they are now
    done, end = os.pipe()
    try:
        watcher = os.fork()
    except OSError:  # no room for another process: the guard will say so
        watcher = None
    if watcher == 0:
        close(end)
        _watch(template, connection, done)
    close(done)
    try:
        yield
    finally:
        close(end)
        if watcher is not None and os.getpid() == template:
            # processes that the import has forked hold that end, too
            with contextlib.suppress(OSError):
                kill(watcher, signal.SIGKILL)
                wait(watcher, 0)


def _watch(template: int, connection: socket.socket, done: int) -> None:
    """Kill a template, with what it started, if its client goes first; ends this process."""
    poll = select.poll()
    for descriptor in (done, connection.fileno()):
        poll.register(descriptor, 0)  # only for its end
    if all(descriptor != done for descriptor, _ in poll.poll()):
        for process in (*children(template), template):
            if process != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _notice_of_end(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends, where there is such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _open_output(setup: WorkerSetup) -> int:
    return os.open(setup.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def _read_import_output() -> bytes:
    """Return what the import printed: standard output is a file until a worker has its log."""
    try:
        return os.pread(1, _MAX_IMPORT_OUTPUT, 0)
    except OSError:
        return b""


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    set_up_process()
    adopt_orphans()
    connection, search_path = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]
    sys.argv = [""]  # an experiment has no command line
    Template(connection, search_path).serve().serve()
