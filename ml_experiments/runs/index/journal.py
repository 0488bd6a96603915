"""The journal of a runs folder: which runs were added, changed or removed.

Each line names a run, and the runs folder's modification time before and after the change. A
reader that knows one of these times follows the lines to the present one, and so knows every change
without listing the folder. Whatever changed the folder otherwise breaks this chain.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = ".changes"
_HEADER_BYTES = 18  # `# ` and 16 hex digits


@dataclass(frozen=True)
class Change:
    """One line: a run, and the modification times (ns) of the runs folder around the change."""

    run_id: str
    before: int
    after: int


@dataclass(frozen=True)
class Position:
    """How far a journal was read; `journal` is what its first line says, empty without one."""

    journal: str = ""
    offset: int = 0


@contextlib.contextmanager
def recorded(runs_dir: Path, run_id: str, *, is_listed: bool = False) -> Iterator[None]:
    """Record that a run is added, changed or removed inside the block.

    A journal that can't be written is no error: readers list the folder then.

    Args:
        runs_dir: The runs folder.
        run_id: The run.
        is_listed: Whether it is added or removed, which listing the folder shows too. That alone
            begins no journal.
    """
    if not is_listed:
        begin_journal(runs_dir)
    before = _modified_at(runs_dir)
    try:
        yield
    finally:
        _append(runs_dir, f"{run_id}\t{before}\t{_modified_at(runs_dir)}\n")


def begin_journal(runs_dir: Path) -> None:
    """Make the journal of a runs folder, unless there is one or it can't be written."""
    with contextlib.suppress(OSError):
        file = runs_dir / FILE_NAME
        with file.open("xb") as journal:
            # who may add runs to the folder may add lines
            with contextlib.suppress(OSError):
                file.chmod(runs_dir.stat().st_mode & 0o666)
            journal.write(f"# {secrets.token_hex(8)}\n".encode())


def read_changes(runs_dir: Path, since: Position) -> tuple[list[Change], Position, bool]:
    """Return the changes since a position, the new position, and whether none is missing."""
    try:
        with (runs_dir / FILE_NAME).open("rb") as file:
            header = file.read(_HEADER_BYTES).decode("ascii", "replace")
            is_same = since.journal in ("", header)
            offset = since.offset if is_same else 0
            file.seek(offset)
            lines, end, _ = file.read().rpartition(b"\n")  # the last may be half written
    except OSError:
        return [], Position(), not since.journal
    changes = [change for line in lines.split(b"\n") if (change := _parse(line))]
    return changes, Position(header, offset + len(lines) + len(end)), is_same


def _parse(line: bytes) -> Change | None:
    fields = line.decode("utf-8", "replace").split("\t")
    if len(fields) != 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
        return None
    return Change(fields[0], int(fields[1]), int(fields[2]))


def _append(runs_dir: Path, line: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(runs_dir / FILE_NAME, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line.encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)


def _modified_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
