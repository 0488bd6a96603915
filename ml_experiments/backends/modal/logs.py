"""What a run prints on Modal, live: into its log file here and to an observer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import modal

from ml_experiments.backends.modal.events import EventReader
from ml_experiments.execution.events import Event, Finished, Started, deliver
from ml_experiments.execution.logs import WholeCharacters
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.log_times import LogTimes
from ml_experiments.runs.spec import RunSpec

# how long the last lines may come after the result
_LAST_LINES_S = 5.0


class LiveLogs:
    """Follows the logs of one call until its run has ended.

    The log on the volume is the truth and replaces what is written here once the run has
    ended; a stream that breaks off is therefore no error of the run.

    Args:
        call: The call.
        spec: The run's spec.
        folder: The run's folder.
        observer: Receives what comes.
        redactor: Takes the secrets out.
        on_start: Is called when the run has started.
        is_written: Whether to write the log file here. The stream begins with the call, so only
            the client that made the call does: another one would write all again.
    """

    def __init__(
        self,
        call: Any,
        spec: RunSpec,
        folder: RunFolder,
        observer: Observer,
        redactor: Redactor,
        on_start: Callable[[], None],
        *,
        is_written: bool,
    ) -> None:
        self._is_written = is_written
        self._call = call
        self._spec = spec
        self._folder = folder
        self._observer = observer
        self._redactor = StreamRedactor(redactor)
        self._characters = WholeCharacters()
        self._on_start = on_start
        self._events = EventReader()
        self._ended = False
        self._thread = threading.Thread(target=self._follow, daemon=True, name="modal-logs")
        # held while the observer is called, so that nothing comes after `finish`
        self._lock = threading.Lock()
        self._muted = False

    def start(self) -> None:
        """Begin to follow, in a thread."""
        self._thread.start()

    def finish(self) -> None:
        """Wait a little for the last lines; none come after this."""
        self._thread.join(_LAST_LINES_S)
        with self._lock:
            rest = self._redactor.feed(self._events.flush()) + self._redactor.flush()
            self._print(self._characters.feed(rest) + self._characters.flush())
            self._muted = True
        if self._thread.is_alive():
            self._observer.notice(
                self._spec,
                f"the output of {self._spec.run_id} came faster than it could be shown; all of it "
                f"is in {self._folder.log_file}",
            )

    def _follow(self) -> None:
        entries = self._call.logs.stream()
        try:
            with _LogFile(self._folder) if self._is_written else contextlib.nullcontext() as log:
                for entry in entries:
                    with self._lock:
                        if self._muted:
                            return
                        self._hear(entry, log)
                    if self._ended:
                        return
        except (modal.exception.Error, OSError) as e:
            self._observer.notice(
                self._spec, f"the live log of {self._spec.run_id} broke off ({e}); the run goes on"
            )
        finally:
            entries.close()

    def _hear(self, entry: Any, log: _LogFile | None) -> None:
        if entry.source == "system":  # Modal itself, about the container
            self._observer.notice(self._spec, entry.message.rstrip("\n"))
            return
        for item in self._events.feed(entry.message.encode()):
            if isinstance(item, bytes):
                data = self._redactor.feed(item)
                if log is not None:
                    log.write(data)
                self._print(self._characters.feed(data))
            else:
                self._pass_on(item)

    def _pass_on(self, event: Event) -> None:
        match event:
            case Started():
                self._on_start()
            case Finished():
                self._ended = True
        deliver(event, self._observer, self._spec)

    def _print(self, data: bytes) -> None:
        if data:
            self._observer.log(self._spec, data)


class _LogFile:
    """The log file of a run, and when it grew."""

    def __init__(self, folder: RunFolder) -> None:
        self._times = LogTimes(folder.log_file)
        self._file = folder.log_file.open("ab", buffering=0)

    def __enter__(self) -> _LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._times.note(data)
