"""The worker process of the local backend: executes runs one after another.

Started by `local_backend` as `python -m ml_experiments.backends.worker FD`, where FD is one end
of a socket pair. Both sides send one JSON object a line:

    to the worker     {"run": spec, "folder": path}   {"cancel": run_id}
    from the worker   {"event": "started" | "progress" | "metrics" | "finished", ...}
                      {"event": "outdated"}: a module changed on disk; start another worker
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
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from ml_experiments.execution import WarmExperiment, execute_run
from ml_experiments.run_folder import RunFolder
from ml_experiments.runs import RunSpec

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
        self._warm = WarmExperiment()
        self._sources = LoadedSources()

    def serve(self) -> None:
        """Execute runs until the other side closes the connection."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            try:
                message = self._inbox.get()
                if message is None:
                    return
                self._execute(message)
            except KeyboardInterrupt:
                continue  # a cancellation that came just after its run had ended

    def send(self, event: dict[str, Any]) -> None:
        """Send one event; the other side may be gone already."""
        line = json.dumps(event).encode() + b"\n"
        with self._send_lock, contextlib.suppress(OSError):
            self._writer.write(line)
            self._writer.flush()

    def _execute(self, message: dict[str, Any]) -> None:
        if self._sources.changed():
            self.send({"event": "outdated"})
            return
        spec, folder = RunSpec.from_dict(message["run"]), RunFolder(Path(message["folder"]))
        self._running = spec.run_id
        self.send({"event": "started"})
        try:
            with _output_to(folder.log_file):
                result = execute_run(
                    spec, folder, emit=self.send, warm=self._warm, interrupt="cancels"
                )
        finally:
            self._running = None
        finished: dict[str, Any] = {"event": "finished"}
        if not folder.result_file.exists():  # the disk is full: it has to travel as it is
            finished["result"] = result.to_dict()
        self.send(finished)

    def _listen(self) -> None:
        for line in self._reader:
            message = json.loads(line)
            if "cancel" not in message:
                self._inbox.put(message)
            elif message["cancel"] == self._running:
                _interrupt_main_thread()
        # the client is gone: end the run as a cancelled one, then everything
        self._inbox.put(None)
        if self._running is not None:
            _interrupt_main_thread()
        time.sleep(PARENT_GONE_GRACE_S)
        _end_everything()


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


@contextlib.contextmanager
def _output_to(file: Path) -> Any:
    """Send this process's standard output and error, of any origin, to the end of a file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()


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
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
