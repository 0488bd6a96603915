"""Looks after runs that another process started: follows, waits for, and cancels them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ml_experiments.errors import Error, RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import LOST_AFTER_S, request_cancel, silent_s
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.result import RunResult

_LOOK_EVERY_S = 0.1
_CHUNK = 1 << 20


def is_tried_again(folder: RunFolder) -> bool:
    """Return whether a client may make another attempt at a run, though this one has ended.

    Raises:
        RunFolderError: If the spec is not readable.
    """
    return folder.read_spec().may_run_again and RunLock.is_held(folder)


def has_client(folder: RunFolder) -> bool:
    """Return whether a process sees the run through; a run on Modal goes on without.

    Raises:
        RunFolderError: If the manifest is not readable.
    """
    manifest = folder.read_manifest()
    is_alive = None if manifest.client is None else manifest.client.is_alive()
    if is_alive is not None:
        return is_alive
    # the folder of a run on Modal may be young because it has just been brought here
    return silent_s(folder.path, only_beats=manifest.modal is not None) < LOST_AFTER_S


def follow_log(folder: RunFolder, show: Callable[[bytes], object], offset: int = 0) -> RunResult:
    """Show what a run prints until it has ended, from its log; return its outcome.

    Args:
        folder: The run folder.
        show: Receives the output as it comes.
        offset: Where in the log to begin, in bytes.

    Raises:
        RunFolderError: If a file of the folder is not readable.
    """
    while True:
        outcome = folder.outcome()
        is_over = outcome.status.has_ended and not is_tried_again(folder)
        while data := _read_log(folder, offset):
            offset += len(data)
            show(data)
        if is_over:
            return outcome
        time.sleep(_LOOK_EVERY_S)


def wait_for_end(folder: RunFolder, limit_s: float | None = None) -> RunResult:
    """Wait until a run has ended; return its outcome.

    Raises:
        TimeoutError: If it hasn't after so many seconds.
        RunFolderError: If a file of the folder is not readable.
    """
    ends_at = None if limit_s is None else time.monotonic() + limit_s
    while not (outcome := folder.outcome()).status.has_ended or is_tried_again(folder):
        if ends_at is not None and time.monotonic() > ends_at:
            raise TimeoutError(f"run {outcome.run_id} is {outcome.status} after {limit_s:g} s")
        time.sleep(_LOOK_EVERY_S)
    return outcome


def ask_to_cancel(folder: RunFolder, *, at_once: bool) -> None:
    """Ask the process that sees a run through to cancel it.

    Raises:
        Error: If there is none, or the folder can't be written.
    """
    if not has_client(folder):
        raise Error(f"no process sees run {folder.path.name} through any more")
    try:
        request_cancel(folder.path, at_once=at_once)
    except OSError as e:
        raise RunFolderError(f"{folder.path} can't be written: {e.strerror}") from e


def _read_log(folder: RunFolder, offset: int) -> bytes:
    try:
        # opened anew each time: the log of a run on Modal is replaced by the volume's in the end
        with folder.log_file.open("rb") as log:
            log.seek(offset)
            return log.read(_CHUNK)
    except OSError as e:
        raise RunFolderError(f"{folder.log_file} is not readable: {e.strerror}") from e
