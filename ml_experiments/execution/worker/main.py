"""The worker process: executes runs one after another.

Started by `process.py` as `python -m ml_experiments.execution.worker.main FD`, where FD is one
end of a socket pair. Both sides send one JSON object a line:

    to the worker     {"run": spec, "folder": path, "secrets": [...]}   {"cancel": run_id}
    from the worker   {"event": "started" | "progress" | "metrics" | "finished", "run": id, ...}
                      {"event": "cancelled", ...}: before it had begun
                      {"event": "outdated", ...}: a module changed on disk; start another worker
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import psutil

from ml_experiments.execution.execute import execute_run
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.process_state import StateKeeper
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import redact_file
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.spec import RunSpec

PARENT_GONE_GRACE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36


class Worker:
    """Reads messages, executes runs, sends events."""

    def __init__(self, connection: socket.socket) -> None:
        self._reader: BinaryIO = connection.makefile("rb")
        self._writer: BinaryIO = connection.makefile("wb")
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._running: str | None = None
        self._cancelled: set[str] = set()
        self._client_is_gone = False
        self._log = OpenLog()
        self._warm = StateKeeper()
        self._sources = LoadedSources()

    def serve(self) -> None:
        """Execute runs until the other side closes the connection."""
        signal.signal(signal.SIGINT, self._interrupt)
        threading.Thread(target=self._listen, daemon=True).start()
        while (message := self._inbox.get()) is not None:
            self._execute(message)

    def send(self, event: dict[str, Any]) -> None:
        """Send one event; the other side may be gone already."""
        line = json.dumps(event).encode() + b"\n"
        with self._send_lock, contextlib.suppress(OSError):
            self._writer.write(line)
            self._writer.flush()

    def _execute(self, message: dict[str, Any]) -> None:
        spec, folder = parse_record(RunSpec, message["run"]), RunFolder(Path(message["folder"]))
        run = {"run": spec.run_id}
        if self._sources.changed():
            self.send({"event": "outdated", **run})
            return
        secrets = message["secrets"]
        self._log.open(folder.log_file, secrets)
        finished: dict[str, Any] = {"event": "finished", **run}
        try:
            # first, so that a cancellation is either seen on the next line or interrupts
            self._running = spec.run_id
            if self._client_is_gone or spec.run_id in self._cancelled:
                raise KeyboardInterrupt
            self.send({"event": "started", **run})
            result = execute_run(
                spec,
                folder,
                emit=lambda event: self.send({**event, **run}),
                warm=self._warm,
                hints=Hints(),
                interrupt="cancels",
                secrets=secrets,
            )
            if not folder.result_file.exists():  # the disk is full: it has to travel as it is
                finished["result"] = result.to_dict()
        except KeyboardInterrupt:  # just before the experiment began, or after it had ended
            if not folder.result_file.exists():
                finished["event"] = "cancelled"
        finally:
            self._running = None
        self._cancelled.discard(spec.run_id)
        self._warm.restore_state()
        problem = self._log.close()
        if problem is not None:
            finished["not_redacted"] = problem
        self.send(finished)

    def _listen(self) -> None:
        for line in self._reader:
            message = json.loads(line)
            if "cancel" not in message:
                self._inbox.put(message)
                continue
            self._cancelled.add(message["cancel"])  # perhaps of a run that has not begun yet
            if message["cancel"] == self._running:
                _interrupt_main_thread()
        # the client is gone: end the run as a cancelled one, then everything
        self._client_is_gone = True
        self._inbox.put(None)
        if self._running is not None:
            _interrupt_main_thread()
        time.sleep(PARENT_GONE_GRACE_S)
        self._log.close()
        _end_everything()

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Interrupt the run; a cancellation that comes just after its end does nothing."""
        if self._running is not None:
            raise KeyboardInterrupt


class OpenLog:
    """Where this process's output goes, of any origin: a run's log file, redacted at its end."""

    def __init__(self) -> None:
        self._open: tuple[Path, Redactor] | None = None
        self._lock = threading.Lock()  # who ends the process waits for the redaction

    def open(self, file: Path, secrets: Iterable[str]) -> None:
        """Send standard output and error to the end of a file."""
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
        self._open = file, Redactor(secrets)

    def close(self) -> str | None:
        """Take secrets out of the file, unless that's done; return what prevented it."""
        with self._lock:
            if self._open is None:
                return None
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(ValueError, OSError):
                    stream.flush()
            (file, redactor), self._open = self._open, None
            try:
                redact_file(file, redactor)
            except OSError as e:
                return str(e)
            return None


class LoadedSources:
    """Notices edits of the modules that this process has imported, the installed ones aside."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        self._installed = tuple(
            paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")
        )
        self._started_ns = time.time_ns()
        self._seen: dict[str, int] = {}

    def changed(self) -> bool:
        """Return whether a module's file is not what was imported."""
        now_ns = time.time_ns()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or not file.endswith(".py"):
                continue
            if file.startswith(self._installed):
                continue
            # what an installed package generates, as torch.compile does, isn't anybody's source
            package = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
            if isinstance(package, str) and package.startswith(self._installed):
                continue
            modified_ns = _modified_ns(file)
            # seen late, a file may have been edited after its import: then it's newer than this
            # process; a time in the future says nothing
            edited_since_start = self._started_ns < modified_ns <= now_ns
            if edited_since_start or self._seen.setdefault(file, modified_ns) != modified_ns:
                return True
        return False


def _modified_ns(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116 - a hot path
    except OSError:
        return 0


def _interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def _adopt_orphans() -> None:
    """Stay the ancestor of processes whose parent ends, so that they can be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_everything() -> None:
    """End what the experiments started, also outside this process group, then this process."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is something to interrupt
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()
    _adopt_orphans()
    try:
        Worker(socket.socket(fileno=int(sys.argv[1]))).serve()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _end_everything()


if __name__ == "__main__":
    main()
