"""What the result of a run depends on, as hashes: equal for two runs that come to the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Stamp = tuple[int, int, int, int] | None

_DIGITS = 16
# reading a file takes longer than asking when it was changed; a data set may have terabytes
_MAX_READ_BYTES = 64 << 20


@dataclass(frozen=True)
class Fingerprint:
    """What was asked of a run, one hash for each part that its result depends on.

    The seed is in the spec, and the revisions of models in the manifest.

    Attributes:
        experiment: Module and name of the experiment.
        source: Of each module of the user's own that the experiment imports, by name.
        data: Of each data file that these modules name, and of each file that a field of the
            config names.
        config: Of the config, secrets left out.
        packages: Versions of what is installed, or what stands for them.
        place: The backend, and the GPU that was asked for.
    """

    experiment: str
    source: dict[str, str]
    data: dict[str, str]
    config: str
    packages: dict[str, str]
    place: str


@dataclass(frozen=True)
class SourceFiles:
    """The hashes of some files, and their state when they were read.

    Attributes:
        source: See `Fingerprint`.
        data: The same.
        stamps: The state of each file, by path.
    """

    source: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def have_changed(self) -> bool:
        """Return whether one of the files is no longer what was read."""
        return have_changed(self.stamps)


def have_changed(stamps: Mapping[str, Stamp]) -> bool:
    """Return whether a file or folder is no longer what it was when its stamp was taken."""
    return any(stamp_of(path) != stamp for path, stamp in stamps.items())


def stamp_of(path: str) -> Stamp:
    """Return what changes when a file does; None without the file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a hot path
    except OSError:
        return None
    # the inode and the time of the last change also tell a file that was replaced by an older one
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def hash_of(data: Any) -> str:
    """Return a hash of JSON, the order of keys left out."""
    encoded = json.dumps(data, sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.sha256(encoded).hexdigest()[:_DIGITS]


def hash_of_file(path: Path) -> str:
    """Return a hash of a file's content, or for a large one its size and time of change.

    Raises:
        OSError: If it can't be read.
    """
    status = path.stat()
    if status.st_size > _MAX_READ_BYTES:
        return f"{status.st_size}:{status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
