"""Remembers where the code stood, so that many runs in a row don't each ask git.

A description holds as long as nothing changed that git would look at: no tracked or known
untracked file, no folder above one of them (a new file changes its folder), no ref, no index.
Looking costs a `stat` a file instead of four git processes.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.runs.provenance.git import SAFE_OPTIONS, TIME_LIMIT_S, describe_code
from ml_experiments.settings import git_environment

MOST_FILES = 20_000
_GIT_FILES = ("HEAD", "index", "logs/HEAD", "packed-refs", "info/exclude", "config")

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class _Memory:
    description: dict[str, Any]
    paths: tuple[str, ...]
    signature: Signature


class CodeMemory:
    """Describes the code around a folder, anew only when it has changed."""

    def __init__(self) -> None:
        self._memories: dict[Path, _Memory] = {}
        self._lock = threading.Lock()

    def describe(self, folder: Path) -> dict[str, Any]:
        """Return what `code_state.describe_code` returns."""
        with self._lock:
            memory = self._memories.get(folder)
            if memory is None or not memory.paths or _sign(memory.paths) != memory.signature:
                memory = _look(folder)
                self._memories[folder] = memory
            return memory.description


def _look(folder: Path) -> _Memory:
    paths = _watched_paths(folder)
    signature = _sign(paths)  # before git looks: what changes meanwhile is noticed next time
    return _Memory(describe_code(folder), paths, signature)


def _watched_paths(folder: Path) -> tuple[str, ...]:
    """Return every path whose change may change the description; none when that isn't known."""
    command = ["git", *SAFE_OPTIONS, "-C", str(folder)]
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--full-name"]
    try:
        places = _output([*command, "rev-parse", "--absolute-git-dir", "--show-toplevel"])
        git_dir, root = places.rstrip(b"\n").split(b"\n")
        names = _output([*command, *listing, os.fsdecode(b":/")]).split(b"\0")
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    if len(names) > MOST_FILES or b".gitmodules" in names:
        return ()
    files = [os.path.join(root, name) for name in names if name]  # noqa: PTH118 - bytes
    folders = {root}
    for file in files:
        folder_of_it = os.path.dirname(file)  # noqa: PTH120 - bytes
        while folder_of_it not in folders:  # also those that hold only folders
            folders.add(folder_of_it)
            folder_of_it = os.path.dirname(folder_of_it)  # noqa: PTH120
    git_files = [os.path.join(git_dir, name.encode()) for name in _GIT_FILES]  # noqa: PTH118
    return tuple(os.fsdecode(path) for path in (*git_files, *sorted(folders), *files))


def _sign(paths: tuple[str, ...]) -> Signature:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_mode


def _output(command: list[str]) -> bytes:
    return subprocess.run(
        command,
        capture_output=True,
        check=True,
        timeout=TIME_LIMIT_S,
        stdin=subprocess.DEVNULL,
        env=git_environment(),
    ).stdout
