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
_LOOK_FOR_CLIENT_EVERY_S = 1.0
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


def is_without_client(folder: RunFolder) -> bool:
    """Return whether a run goes on, on Modal, and no process here sees it through.

    Raises:
        RunFolderError: If a file of the folder is not readable.
    """
    if has_client(folder):
        return False
    return not folder.outcome().status.has_ended  # asked last: a client ends after its run


def follow_log(folder: RunFolder, show: Callable[[bytes], object], offset: int = 0) -> RunResult:
    """Show what a run prints, from its log; return its outcome.

    It returns when the run has ended, or has no client any more, as on Modal.

    Args:
        folder: The run folder.
        show: Receives the output as it comes.
        offset: Where in the log to begin, in bytes.

    Raises:
        RunFolderError: If a file of the folder is not readable.
    """
    look = _Look(folder)
    while True:
        outcome, is_over = look.again()
        while data := _read_log(folder, offset):
            offset += len(data)
            show(data)
        if is_over:
            return outcome
        time.sleep(_LOOK_EVERY_S)


def wait_for_end(folder: RunFolder, limit_s: float | None = None) -> RunResult:
    """Wait until a run has ended, or has no client any more, as on Modal; return its outcome.

    Raises:
        TimeoutError: If it hasn't after so many seconds.
        RunFolderError: If a file of the folder is not readable.
    """
    ends_at = None if limit_s is None else time.monotonic() + limit_s
    look = _Look(folder)
    while True:
        outcome, is_over = look.again()
        if is_over:
            return outcome
        if ends_at is not None and time.monotonic() > ends_at:
            raise TimeoutError(f"run {outcome.run_id} is {outcome.status} after {limit_s:g} s")
        time.sleep(_LOOK_EVERY_S)


class _Look:
    """Looks at a run that another process sees through."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._client_seen_at = time.monotonic()

    def again(self) -> tuple[RunResult, bool]:
        """Return the outcome, and whether there is nothing more to come from that process."""
        outcome = self._folder.outcome()
        if outcome.status.has_ended:
            return outcome, not is_tried_again(self._folder)
        if time.monotonic() - self._client_seen_at < _LOOK_FOR_CLIENT_EVERY_S:
            return outcome, False
        self._client_seen_at = time.monotonic()
        return outcome, is_without_client(self._folder)


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
