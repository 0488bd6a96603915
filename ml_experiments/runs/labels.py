"""The labels of a run: its name, tags and note, which may be changed at any time.

They are in `labels.json` once somebody has changed them; until then they are those of the spec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ml_experiments.errors import RunFolderError
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.records import parse_record, read_json_object
from ml_experiments.serialization.files import write_json_atomically

FILE_NAME = "labels.json"


@dataclass(frozen=True)
class Labels:
    """What people call a run."""

    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    note: str | None = None


def read_labels(folder: RunFolder) -> Labels:
    """Return the labels of a run.

    Raises:
        RunFolderError: If a file of the folder is not readable.
    """
    file = folder.path / FILE_NAME
    if not os.path.lexists(file):
        spec = folder.read_spec()
        return Labels(spec.name, spec.tags)
    try:
        return parse_record(Labels, read_json_object(file))
    except ValueError as e:
        raise RunFolderError(f"{file} does not hold the labels of a run: {e}") from e


def edit_labels(folder: RunFolder, change: Callable[[Labels], Labels]) -> Labels:
    """Change the labels of a run; return them as they were written, secrets left out.

    Raises:
        RunFolderError: If they can't be read or written; the old ones are then untouched.
    """
    with _locked(folder.path):
        labels = change(read_labels(folder))
        record = Redactor(secret_values()).redact_record(asdict(labels), ("name", "note", "tags.*"))
        try:
            with recorded(folder.path.parent, folder.path.name):
                write_json_atomically(folder.path / FILE_NAME, record)
        except OSError as e:
            raise RunFolderError(
                f"the run folder {folder.path} can't be written: {e.strerror}"
            ) from e
        return parse_record(Labels, record)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time edit, where the file system can lock a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as e:
        raise RunFolderError(f"the run folder {path} is not readable: {e.strerror}") from e
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
