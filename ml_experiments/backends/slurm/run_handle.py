"""One run on Slurm, followed from this machine through its run folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from ml_experiments.backends.base import RunHandle
from ml_experiments.backends.slurm.job import EVENTS_FILE
from ml_experiments.backends.slurm.queue import Queue
from ml_experiments.errors import BackendError
from ml_experiments.execution.events import deliver, event_from_json
from ml_experiments.execution.logs import WholeCharacters
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import request_cancel, silent_s
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec

# until a shared file system shows what a job that has ended has written
GRACE_S = 5.0
JOB_FOLDER = ".slurm"
_CHUNK = 1 << 20
_MAX_LOG_TAIL = 2000
# what Slurm names the end of a job -> its kind of error
_KINDS = {
    "TIMEOUT": ErrorKind.TIMEOUT,
    "DEADLINE": ErrorKind.TIMEOUT,
    "OUT_OF_MEMORY": ErrorKind.HOST_OOM,
    "PREEMPTED": ErrorKind.PREEMPTED,
}


class SlurmRunHandle(RunHandle):
    """A run that was handed to Slurm.

    Args:
        spec: The run.
        folder: Its run folder.
        observer: Receives live events.
        job: The id of its job.
        queue: Where the job is.
        secrets: Values that no record may hold.
        shows_earlier: Whether to show what it has printed so far.
    """

    future: Future[RunResult]

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        observer: Observer,
        job: str,
        queue: Queue,
        secrets: Iterable[str],
        *,
        shows_earlier: bool = False,
    ) -> None:
        super().__init__(spec, folder)
        self._job, self._queue = job, queue
        self.future = Future()
        self._observer = observer
        self._redactor = Redactor(secrets)
        self._is_cancelled = False
        self._gone_since: float | None = None
        self._log = _Tail(folder.log_file, from_start=shows_earlier)
        self._events = _Tail(folder.path / EVENTS_FILE, from_start=shows_earlier)
        self._stream = StreamRedactor(self._redactor)
        self._characters = WholeCharacters()

    def cancel(self, *, at_once: bool = False) -> None:
        """End the run: by an interrupt that the experiment sees, or at once."""
        self._is_cancelled = True
        is_running = self.folder.read_manifest().process is not None
        if is_running:
            request_cancel(self.folder.path, at_once=at_once)
        # a job that waits is removed; one that runs is interrupted, which arrives sooner than what
        # is written to a shared file system
        self._queue.cancel(self._job, by_interrupt=is_running and not at_once)

    def look(self) -> bool:
        """Show what has happened since the last look; return whether the run has ended."""
        self._show()
        if not self.folder.result_file.exists():
            if not self._is_gone():
                return False
            end_lost_run(self.folder, self._queue, self._redactor)
        self._show()
        rest = self._characters.feed(self._stream.flush()) + self._characters.flush()
        if rest:
            self._observer.log(self.spec, rest)
        result = self.folder.read_result()
        self._observer.finished(self.spec, result)
        self.future.set_result(result)
        return True

    def _is_gone(self) -> bool:
        """Return whether the job has ended, and what it wrote would be seen here by now."""
        if self._queue.has(self._job) is not False:
            self._gone_since = None
            return False
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        return self._is_cancelled or now - self._gone_since >= GRACE_S

    def _show(self) -> None:
        for line in self._events.read_lines():
            with contextlib.suppress(ValueError):  # of another version
                deliver(event_from_json(json.loads(line)), self._observer, self.spec)
        while data := self._log.read():
            shown = self._characters.feed(self._stream.feed(data))
            if shown:
                self._observer.log(self.spec, shown)


class _Tail:
    """Reads what is appended to a file, which need not be there yet."""

    def __init__(self, file: Path, *, from_start: bool) -> None:
        self._file = file
        self._position = 0
        self._rest = b""
        if not from_start:
            with contextlib.suppress(OSError):
                self._position = file.stat().st_size

    def read(self) -> bytes:
        """Return the next piece."""
        try:
            with self._file.open("rb") as opened:
                opened.seek(self._position)
                data = opened.read(_CHUNK)
        except OSError:  # not there yet, or a server of files that does not answer
            return b""
        self._position += len(data)
        return data

    def read_lines(self) -> list[bytes]:
        """Return the next whole lines."""
        *lines, self._rest = (self._rest + self.read()).split(b"\n")
        return lines


def end_lost_runs(folders: Sequence[RunFolder], queue: Queue) -> int:
    """Write how runs have ended whose jobs are gone; return how many they were."""
    ended = 0
    for folder in folders:
        manifest = folder.read_manifest()
        is_cluster = folder.read_spec().backend_options.get("cluster") != "local"
        if manifest.job is None or not is_cluster or silent_s(folder.path) < GRACE_S:
            continue
        if queue.has(manifest.job) is False:
            end_lost_run(folder, queue, Redactor(secret_values()))
            ended += 1
    return ended


def end_lost_run(folder: RunFolder, queue: Queue, redactor: Redactor) -> None:
    """Write the result of a run whose job has ended without one."""
    if folder.result_file.exists():
        return
    manifest, spec = folder.read_manifest(), folder.read_spec()
    facts = queue.facts(manifest.job) if manifest.job is not None else {}
    state = facts.get("JobState", "an unknown state")
    status, error = RunStatus.ERROR, None
    if state == "CANCELLED":
        status = RunStatus.CANCELLED
    else:
        code = f", exit code {facts['ExitCode']}" if "ExitCode" in facts else ""
        error = RunError(
            _KINDS.get(state, ErrorKind.INFRASTRUCTURE),
            f"Slurm{state.title().replace('_', '')}" if facts else "JobLost",
            f"Slurm's job {manifest.job} has ended without a result ({state}{code})",
            _log_of_job(folder),
            f"`ml-experiments runs resume {spec.run_id}` runs it again from its checkpoints",
        )
    result = RunResult(
        spec.run_id, status, spec.experiment, error=error, artifacts=folder.list_artifacts()
    )
    folder.write_result(result, redactor)


def write_failure(folder: RunFolder, error: BackendError, redactor: Redactor) -> None:
    """Write the result of a run that Slurm has not taken."""
    spec = folder.read_spec()
    failure = RunError(ErrorKind.INFRASTRUCTURE, type(error).__name__, str(error))
    folder.write_result(
        RunResult(spec.run_id, RunStatus.ERROR, spec.experiment, error=failure), redactor
    )


def _log_of_job(folder: RunFolder) -> str:
    """Return the end of what the job itself has printed."""
    logs = sorted(folder.path.joinpath(JOB_FOLDER).glob("*_log.*"))
    text = "".join(log.read_text("utf-8", "replace") for log in logs)
    return text[-_MAX_LOG_TAIL:]
