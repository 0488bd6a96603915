"""Tracebacks of the user's code, without the frames of what called it."""

from __future__ import annotations

import bdb
import contextlib
import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import ml_experiments
from ml_experiments.errors import Error, ExperimentPathError

MAX_TRACEBACK = 64 * 1024
MAX_DESCRIPTION = 2000

NEEDS_TERMINAL_HINT = (
    "a run has a process of its own, without a terminal; for a debugger or input(), run it in "
    'yours: `ml-experiments run --debug`, or backend="debug"'
)

_PACKAGE = Path(ml_experiments.__file__).parent
_OWN_EXPERIMENTS = _PACKAGE / "tasks"
_CRASH_FRAME = re.compile(r'\s+File "(?P<file>[^"]*)", line \d+ in ')
_IMPORT_HOOK = str(_PACKAGE / "execution" / "worker" / "sources.py")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, those of a group, and what each was raised from."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        pending.append(link.__cause__ or (None if link.__suppress_context__ else link.__context__))
        if isinstance(link, BaseExceptionGroup):
            pending += reversed(link.exceptions)


def needs_terminal(error: BaseException | None) -> bool:
    """Return whether an exception comes of a debugger or a question without a terminal."""
    return any(
        isinstance(e, bdb.BdbQuit)
        or type(e).__module__ in ("termios", "_curses")
        or (isinstance(e, EOFError) and str(e) == "EOF when reading a line")
        for e in chain(error)
    )


def describe_debugger(error: bdb.BdbQuit) -> str:
    """Return where the debugger was opened that ended the user's code as it was left."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    # where it stood; at a `return` that frame is not in the traceback any more
    stopped = (f.f_locals.get("frame") for f in frames if f.f_code.co_filename == bdb.__file__)
    at = next(stopped, None)
    place = "the experiment" if at is None else f"{at.f_code.co_filename}, line {at.f_lineno}"
    return f"the debugger that was opened in {place} was left"


def message_of(error: BaseException) -> str:
    """Return an exception's message, also where its `__str__` is broken."""
    try:
        return str(error)
    except Exception as e:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        return f"(its message could not be read: {type(e).__name__})"


def describe_error(error: BaseException) -> str:
    """Return an exception's type and message, with its traceback below them."""
    message = message_of(error)
    if len(message) > MAX_DESCRIPTION:
        message = f"{message[:MAX_DESCRIPTION]}..."
    return f"{type(error).__name__}: {message}\n{format_traceback(error)}".rstrip()


def format_traceback(error: BaseException) -> str:
    """Format an exception from the experiment's first frame on.

    Empty for what a ready experiment of this package raises on purpose: its message says all.
    """
    if isinstance(error, Error) and error.__traceback__ is not None:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(raised_in).is_relative_to(_OWN_EXPERIMENTS):
            return ""
    if isinstance(error, ExperimentPathError) and error.__cause__ is not None:
        error = error.__cause__  # the message of the other one repeats it
    formatted = traceback.TracebackException.from_exception(error)
    pending, seen = [formatted], set()
    while pending:
        link = pending.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        # without any, as with a syntax error in the experiment's file, there is no heading either
        link.stack = _from_user_on(link.stack) or None  # type: ignore[assignment]
        pending += [other for other in (link.__cause__, link.__context__) if other is not None]
        pending += getattr(link, "exceptions", None) or ()
    text = "".join(formatted.format())
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        cut = len(text) - 2 * half
        text = f"{text[:half]}\n[... {cut} characters left out ...]\n{text[-half:]}"
    return text


def place_of(error: BaseException) -> str | None:
    """Return where the user's code raised an exception, as `file:line`."""
    frames = _from_user_on(traceback.extract_tb(error.__traceback__))
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def without_callers(report: str) -> str:
    """Return the interpreter's report of a crash without what calls the user's code.

    Those are frames of this package and of the import machinery, and threads of this package.
    """
    blocks = []
    for block in report.split("\n\n"):
        lines = block.split("\n")
        kept = [line for line in lines if not _is_caller(line)]
        if len(kept) == len(lines) or not block.startswith("Thread "):
            blocks.append("\n".join(kept))
    return "\n\n".join(blocks)


def _is_caller(line: str) -> bool:
    frame = _CRASH_FRAME.match(line)
    if frame is None:
        return False
    is_start = frame["file"] == "<string>" and line.endswith("line 1 in <module>")
    return is_start or _is_of_import(frame["file"]) or _is_own(Path(frame["file"]))


def _from_user_on(frames: traceback.StackSummary) -> traceback.StackSummary:
    """Leave out what the interpreter does to import a module, and what calls the user's code.

    That is this package, and pydantic where it calls a validator or makes a default.
    """
    kept = [frame for frame in frames if not _is_of_import(frame.filename)]
    callers = [Path(str(m.__file__)).parent for m in [sys.modules.get("pydantic")] if m]
    callers.append(Path(contextlib.__file__))
    first = next(
        (
            i
            for i, file in enumerate(Path(frame.filename) for frame in kept)
            if not _is_own(file) and not any(map(file.is_relative_to, callers))
        ),
        len(kept),
    )
    return traceback.StackSummary.from_list(kept[first:])


def _is_of_import(filename: str) -> bool:
    is_frozen = filename.startswith("<frozen importlib")
    return is_frozen or filename in (importlib.__file__, _IMPORT_HOOK)


def _is_own(file: Path) -> bool:
    return file.is_relative_to(_PACKAGE) and not file.is_relative_to(_OWN_EXPERIMENTS)
