"""What a run prints: shown while it executes, and redacted on disk."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor, redact_file
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.log_times import LogTimes
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

# how long the last output may be shown after the end, when there is much of it
_LAST_OUTPUT_S = 5.0
# so little at a time that a slow terminal doesn't keep the clock from being watched
_CHUNK = 1 << 16
_MAX_CHARACTER = 4
_INSIDE_CHARACTERS = bytes(range(0x80, 0xC0))

logger = logging.getLogger(__name__)


class WholeCharacters:
    """Passes on UTF-8 that arrives in pieces, never a part of a character."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what there is, without the beginning of a character at its end."""
        data = self._held + data
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(data[-_MAX_CHARACTER + 1 :])
        self._held = decoder.getstate()[0]
        return data[: len(data) - len(self._held)]

    def flush(self) -> bytes:
        """Return what was held back; it is no character."""
        held, self._held = self._held, b""
        return held


class LogTail:
    """Shows the output of a run to its observer, a piece at a time.

    Args:
        spec: The run.
        folder: Its run folder.
        output: The file that the run's process writes to: the log file itself, or another one,
            which is copied to the log file without the secrets.
        observer: Receives the output.
        redactor: Takes the secrets out.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        output: Path,
        observer: Observer,
        redactor: Redactor,
    ) -> None:
        self._spec = spec
        self._log_file = folder.log_file
        self._observer = observer
        self._redactor = redactor
        self._stream = StreamRedactor(redactor)
        self._characters = WholeCharacters()
        self._times = LogTimes(folder.log_file)
        self._file = output.open("rb", buffering=0)
        is_copied = output != folder.log_file
        self._copy = self._log_file.open("ab", buffering=0) if is_copied else None

    def skip_earlier(self) -> None:
        """Show only what comes from now on, not what an earlier attempt has printed."""
        self._file.seek(0, os.SEEK_END)

    def show_some(self) -> bool:
        """Show the next piece; return whether there is more already."""
        data = self._file.read(_CHUNK)
        if data:
            self._show(self._characters.feed(self._copied(self._stream.feed(data))))
        return len(data) == _CHUNK

    def show_rest(self, hurry: Callable[[], bool]) -> None:
        """Show what the run printed last; only the end of it when it's much, or one is in a hurry.

        Args:
            hurry: Returns whether the user waits for the end, having cancelled the run.
        """
        end = os.fstat(self._file.fileno()).st_size
        ends_at = time.monotonic() + _LAST_OUTPUT_S
        while self._unshown(end) > _CHUNK and not hurry() and time.monotonic() < ends_at:
            self.show_some()
        tail = self._skip_to_tail(end) if self._unshown(end) > _CHUNK else b""
        while not tail and self._unshown(end) > 0:
            self.show_some()
        rest = self._characters.feed(self._copied(self._stream.flush()))
        self._show(rest + self._characters.flush())
        if tail:
            self._observer.notice(
                self._spec,
                f"the output of {self._spec.run_id} came faster than it could be shown; all of it "
                f"is in {self._log_file}, and this is its end:",
            )
            self._times.note(tail)
            # on a line of its own
            self._show(b"\n" + tail)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._copy is not None:
            self._copy.close()

    def _show(self, data: bytes) -> None:
        if data:
            self._observer.log(self._spec, data)

    def _unshown(self, end: int) -> int:
        return end - self._file.tell()

    def _skip_to_tail(self, end: int) -> bytes:
        """Return the last lines, redacted."""
        while self._copy is not None and (data := self._file.read(_CHUNK)):
            self._copied(self._stream.feed(data))
        # a secret may be cut in two where the tail begins: what is left of it is in what's
        # read more, and not shown
        more = max(map(len, self._redactor.byte_forms), default=0)
        self._file.seek(max(0, end - _CHUNK - more))
        tail = self._redactor.redact_bytes(self._file.read(_CHUNK + more))[more:]
        _, newline, lines = tail.partition(b"\n")
        return lines if newline and lines else tail.lstrip(_INSIDE_CHARACTERS)

    def _copied(self, data: bytes) -> bytes:
        """Return the data, which is then in the log file, with its time."""
        self._times.note(data)
        if self._copy is not None and data:
            with contextlib.suppress(OSError):  # a full disk must not end the live log
                self._copy.write(data)
        return data


def redact_log(folder: RunFolder, redactor: Redactor) -> None:
    """Take secrets out of a run's log; when that fails, the run's result still counts."""
    try:
        redact_file(folder.log_file, redactor)
    except OSError as e:
        warn_of_secrets(folder, str(e))


def log_traceback(folder: RunFolder, result: RunResult) -> None:
    """Add the traceback of a run that has failed to its log, which outlives the next attempt."""
    error = result.error
    if error is None or not error.traceback:
        return
    with contextlib.suppress(OSError), folder.log_file.open("a+b") as log:
        if log.tell() > 0:
            log.seek(-1, os.SEEK_END)
            log.write(b"" if log.read() == b"\n" else b"\n")  # after what was not finished
        log.write(f"{error.traceback.rstrip()}\n".encode("utf-8", "backslashreplace"))


def warn_of_secrets(folder: RunFolder, reason: str) -> None:
    """Say that secrets could not be taken out of a run's log."""
    logger.warning(
        "%s may hold secrets that the run printed; they could not be taken out of it: %s",
        folder.log_file,
        reason,
    )
