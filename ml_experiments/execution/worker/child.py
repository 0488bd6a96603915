"""The worker: executes the runs of one experiment in this process.

It talks to its supervisor over a socket, one JSON object a line:

    to the worker     {"describe": ...}   {"run": ...}: see `RunMessage`
                      {"interrupt": run id, "preempted": bool}
    from the worker   {"descriptions": [...]} or {"problem": ...} or {"outdated": true}
                      an event (see `events.py`) with the run's id
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import faulthandler
import importlib
import json
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from ml_experiments.errors import BackendError, ConfigError, Error
from ml_experiments.execution.describe import describe_experiment
from ml_experiments.execution.events import Event, Finished, Started, event_to_json
from ml_experiments.execution.execute import execute_run
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.launch.launcher import run_in_ranks
from ml_experiments.execution.warm_experiment import OtherProcessNeeded, WarmExperiment
from ml_experiments.execution.worker.death import NO_THREAD
from ml_experiments.execution.worker.ending import end_process, flush_files
from ml_experiments.execution.worker.guard import WRITING_MARK, end_with_parent
from ml_experiments.execution.worker.messages import RunMessage, problem_of
from ml_experiments.execution.worker.sources import LoadedSources
from ml_experiments.experiment.importing import import_failed
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.records import parse_record
from ml_experiments.settings import update_environment


class Worker:
    """Reads messages, describes an experiment or executes runs, and sends events."""

    def __init__(self, connection: socket.socket, sources: LoadedSources) -> None:
        self._reader: BinaryIO = connection.makefile("rb")
        self._writer: BinaryIO = connection.makefile("wb")
        self._sources = sources
        self._send_lock = threading.Lock()
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._running: str | None = None
        self._folder: Path | None = None
        self._has_returned = False
        self._interrupted: dict[str, bool] = {}  # run id -> whether it was preempted
        self._client_is_gone = False
        self._warm = WarmExperiment(has_own_process=True)
        self._environment: dict[str, str] = sources.environment  # of the last question

    def serve(self) -> NoReturn:
        """Serve until a run's process has to end, or the other side closes the connection."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        _hold_ignored_signals()
        try:
            threading.Thread(target=self._listen, daemon=True).start()
        except RuntimeError:  # too many threads and processes
            self._send({"problem": problem_of(BackendError(f"the worker process {NO_THREAD}"))})
            sys.exit(f"the worker process {NO_THREAD}")
        while (message := self._inbox.get()) is not None:
            if "describe" in message:
                answer = self._describe(message["describe"])
                if os.getpid() != self._pid:
                    os._exit(0)  # a process that a validator has forked
                self._send(answer)
            elif self._warm.instance is not None and self._sources.have_changed():
                break  # what runs import in methods, for example; the run gets another process
            elif not self._execute(parse_record(RunMessage, message["run"])):
                break
        # the process ends as any Python program does; nothing interrupts that
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._warm.drop()
        end_process(self._sources)

    def _describe(self, asked: dict[str, Any]) -> dict[str, Any]:
        environment = asked["environment"]
        if self._sources.have_changed(environment):
            return {"outdated": True}
        update_environment(self._environment, environment)
        self._environment = environment
        try:
            return {"descriptions": [_describe_with(each, asked) for each in asked["configs"]]}
        except Error as e:
            return {"problem": problem_of(e)}
        except KeyboardInterrupt as e:  # the experiment's own: no run is interrupted here
            return {"problem": problem_of(import_failed(asked["experiment"], e))}

    def _execute(self, message: RunMessage) -> bool:
        """Execute a run; return whether this process may serve another."""
        spec, folder = message.spec, RunFolder(Path(message.folder), message.attempt)
        _point_output_at(message.output)
        finished = Finished(has_result=False)
        try:
            self._folder, self._has_returned = folder.path, False
            # first, so that an interrupt is either seen on the next line or raised
            self._running = spec.run_id
            if self._client_is_gone or spec.run_id in self._interrupted:
                raise KeyboardInterrupt
            self._emit(Started())
            hints = load_hints(message.hints)
            result = execute_run(
                spec,
                folder,
                emit=self._emit,
                warm=self._warm,
                setup_key=message.setup_key,
                hints=hints,
                secrets=message.secrets,
                began_at=message.began_at,
                on_returned=self._on_returned,
                is_preempted=lambda: self._interrupted.get(
                    spec.run_id, self._client_is_gone and message.goes_on_elsewhere
                ),
                reports_models=message.reports_models,
                in_ranks=None
                if spec.launch is None
                else lambda: run_in_ranks(message, self._emit, hints),
            )
            is_written = folder.result_file.exists()
            finished = Finished(result=None if is_written else result.to_dict())
        except KeyboardInterrupt:  # before the experiment began, or a preemption
            finished = Finished(has_result=folder.result_file.exists())
        except OtherProcessNeeded:
            finished = Finished(has_result=False, needs_process=True)
        self._running, run_id = None, spec.run_id
        state = self._warm.state
        if state is not None and finished.has_result and not self._client_is_gone:
            finished = dataclasses.replace(finished, stays=state.restore() and state.is_alone())
            flush_files()
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):  # the run may have put anything there
                getattr(sys, name).flush()
        if finished.stays:
            _point_output_at(os.devnull)
        self._send({**event_to_json(finished), "run": run_id})
        self._interrupted.pop(run_id, None)
        with contextlib.suppress(OSError):
            (folder.path / WRITING_MARK).unlink(missing_ok=True)
        return finished.stays

    def _emit(self, event: Event) -> None:
        self._send({**event_to_json(event), "run": self._running})

    def _send(self, message: dict[str, Any]) -> None:
        """Send one message, unless the other side is gone or a forked child sends it."""
        if os.getpid() != self._pid:
            return
        line = json.dumps(message).encode() + b"\n"
        with self._send_lock, contextlib.suppress(OSError):
            self._writer.write(line)
            self._writer.flush()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # reset: the client died with something unread
            for line in self._reader:
                message = json.loads(line)
                if "interrupt" not in message:
                    self._inbox.put(message)
                    continue
                run_id = message["interrupt"]
                self._interrupted[run_id] = message["preempted"]  # perhaps before it begins
                if run_id == self._running and not self._has_returned:
                    _interrupt_main_thread()
        # the client is gone: the run ends as a cancelled one, or without a result where it goes on
        # elsewhere; the guard waits for that
        self._client_is_gone = True
        self._inbox.put(None)
        if self._running is not None and not self._has_returned:
            _interrupt_main_thread()
        self._mark_writing()

    def _on_returned(self) -> None:
        """Note that `run()` has returned: what it returned is written whatever happens now."""
        self._has_returned = True
        self._mark_writing()

    def _mark_writing(self) -> None:
        """Have the guard wait for the result, though the client is gone."""
        is_writing = self._running is not None and self._has_returned
        if self._client_is_gone and is_writing and self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / WRITING_MARK).touch()

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """Interrupt the run; an interrupt that comes just after its end does nothing."""
        is_executing = self._running is not None and not self._has_returned
        if is_executing and os.getpid() == self._pid:
            raise KeyboardInterrupt


def _describe_with(pickled: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an experiment with one config, or the problem of that."""
    # from the client, which starts this process; nothing that goes back is a pickle
    config = pickle.loads(base64.b64decode(pickled))
    experiment, import_paths = asked["experiment"], tuple(asked["import_paths"])
    try:
        description = describe_experiment(
            experiment, import_paths, config, asked["seed"], is_recorded=asked["is_recorded"]
        )
    except ConfigError as e:
        return {"problem": problem_of(e)}
    return dataclasses.asdict(description)


def load_hints(path: str) -> Hints:
    """Return the hints of a run message."""
    module, _, name = path.partition(":")
    hints: Hints = getattr(importlib.import_module(module), name)()
    return hints


def _point_output_at(file: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def _hold_ignored_signals() -> None:
    """Have signals that this process ignores end the processes that it starts, as usual.

    A scheduler of jobs sends them to all processes of a job; a worker is ended by its supervisor.
    """
    held = [s for s in (signal.SIGTERM, signal.SIGUSR2) if signal.getsignal(s) is signal.SIG_IGN]
    if not held:
        return

    def release() -> None:
        for signum in held:
            if signal.getsignal(signum) is _do_nothing:
                signal.signal(signum, signal.SIG_DFL)

    for signum in held:  # the default comes back with another program
        signal.signal(signum, _do_nothing)
    os.register_at_fork(after_in_child=release)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def set_up_process() -> None:
    """Set up the standard streams and the signals of a process in which experiments execute."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is something to interrupt
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()


def main() -> None:
    """Serve the socket whose file descriptor is the first argument, in a new interpreter.

    For experiments whose template can't be forked.
    """
    set_up_process()
    end_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = [""]
    sources = LoadedSources()
    sources.record_imports()
    Worker(connection, sources).serve()
