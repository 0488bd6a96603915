"""What the end of a worker process says about the run that it executed."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import BinaryIO

from ml_experiments.execution.failures import kind_of_text
from ml_experiments.execution.hints import SHARED_MEMORY_HINT, Hints, file_size_hint
from ml_experiments.experiment.tracebacks import without_callers
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec

NO_THREAD = "can't start a thread; raise the limit of processes (ulimit -u), or lower max_workers"
# where the report of a crash begins: the C++ exception that ended the process, or the signal
_CRASH_MARK = re.compile(
    r"((terminate called (after throwing|recursively)|memory allocation of \d+ bytes failed)"
    r"[^\n]*\n(  [^\n]*\n|\n)*)?Fatal Python error"
)
# what the processor or an abort() raises; other signals are sent
_CRASHES = (
    signal.SIGSEGV,
    signal.SIGABRT,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSYS,
    signal.SIGTRAP,
)
_MAX_CRASH_REPORT = 16 * 1024


def describe_death_in_run(code: int, spec: RunSpec, log_tail: str, hints: Hints) -> RunError:
    """Return the error of a run whose process ended with this code, negative for a signal."""
    if code >= 0:
        text = f"the experiment ended its process with exit code {code} (os._exit or alike)"
        kind = kind_of_text(_last_lines(log_tail)) if code > 0 else None
        hint = hints.hint_for(kind, None, spec) if kind else ""
        return RunError(kind or ErrorKind.EXPERIMENT, "ProcessExit", text, log_tail, hint)
    name = signal_name(-code)
    if name == "SIGKILL":
        text = "the worker process was killed, most often by the system for lack of memory"
        return RunError(
            ErrorKind.HOST_OOM,
            name,
            text,
            hint=f"if memory was the cause, {hints.hint_for(ErrorKind.HOST_OOM, None, spec)}",
        )
    if name == "SIGBUS":
        text = (
            "the experiment crashed its process with SIGBUS, most often as shared memory was full"
        )
        hint = f"if that was the cause: {SHARED_MEMORY_HINT}"
        return RunError(ErrorKind.HOST_OOM, name, text, log_tail, hint)
    if name == "SIGXFSZ":
        text = f"the experiment was ended by {name}, as a file grew beyond its size limit"
        return RunError(ErrorKind.INFRASTRUCTURE, name, text, log_tail, file_size_hint())
    if -code not in _CRASHES:
        text = f"the worker process was ended by {name}, which the experiment or another one sent"
        return RunError(ErrorKind.EXPERIMENT, name, text, log_tail)
    text = f"the experiment crashed its process with {name}"
    kind = kind_of_text(log_tail) if name == "SIGABRT" else None
    if kind is not None:  # a C++ exception that no code caught
        return RunError(kind, name, text, log_tail, hints.hint_for(kind, None, spec))
    hint = "a native library crashed; the traceback shows the Python line that called it"
    return RunError(ErrorKind.EXPERIMENT, name, text, log_tail, hint)


def signal_name(number: int) -> str:
    """Return the name of a signal; those for real-time use have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_failed_start(what: str, log_tail: str) -> RunError:
    """Return the error of a run that no worker process started."""
    if NO_THREAD in log_tail:
        return RunError(
            ErrorKind.INFRASTRUCTURE, "WorkerStartError", f"the worker process {NO_THREAD}"
        )
    return RunError(
        ErrorKind.INFRASTRUCTURE,
        "WorkerStartError",
        f"the worker process {what}",
        log_tail,
        "see the traceback; `ml-experiments doctor` checks the installation",
    )


def describe_hard_timeout(spec: RunSpec, hints: Hints) -> RunError:
    """Return the error of a run that was ended at its timeout."""
    return RunError(
        ErrorKind.TIMEOUT,
        "TimeoutError",
        f"the run was ended after {spec.timeout_s:g} s; it did not stop by itself "
        f"after the soft timeout at {spec.soft_timeout_s:g} s",
        hint=hints.hint_for(ErrorKind.TIMEOUT, None, spec),
    )


def read_log_tail(output: Path, redactor: Redactor) -> str:
    """Return the interpreter's own crash report, or the end of what was printed."""
    with output.open("rb") as log:
        return redactor.redact_text(crash_report(log))


def crash_report(log: BinaryIO) -> str:
    """Return the interpreter's crash report in a log, or the end of the log."""
    log.seek(0, 2)
    log.seek(max(0, log.tell() - _MAX_CRASH_REPORT))
    text = log.read().decode("utf-8", "backslashreplace")
    reports = [match.start() for match in _CRASH_MARK.finditer(text)]
    if not reports:
        return text[-2000:]
    before = _last_lines(text[: reports[-1]])  # where C++ code says what it aborts for
    return (before if kind_of_text(before) else "") + without_callers(text[reports[-1] :])


def _last_lines(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[-2:])
