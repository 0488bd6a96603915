"""Which processes of this machine have which files open."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def open_files(root: Path, pids: Iterable[int] | None = None) -> dict[str, str]:
    """Return who has which file below `root` open or mapped, as `python (process 123)`.

    Processes of other users are seen only by root, and none at all where there is no /proc.

    Args:
        root: A folder, symbolic links resolved.
        pids: The processes to look at; all by default.
    """
    prefix = f"{root}{os.sep}"
    found: dict[str, str] = {}
    for process in _processes() if pids is None else (Path(f"/proc/{pid}") for pid in pids):
        paths = [p for p in _paths_of(process, prefix) if p.startswith(prefix)]
        if paths:
            owner = _describe(process)
            found.update((path, owner) for path in paths)
    return found


def _processes() -> Iterable[Path]:
    proc = Path("/proc")
    if not (proc / "self" / "maps").exists():
        return []
    return [path for path in proc.iterdir() if path.name.isdigit()]


def _paths_of(process: Path, prefix: str) -> list[str]:
    paths = []
    try:
        for descriptor in os.scandir(process / "fd"):
            try:
                paths.append(str(Path(descriptor.path).readlink()))
            except OSError:
                continue  # closed since the folder was read
        maps = (process / "maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return paths  # it ended, or belongs to another user
    if prefix in maps:
        paths.extend(line[line.index(prefix) :] for line in maps.split("\n") if prefix in line)
    return paths


def _describe(process: Path) -> str:
    try:
        name = (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        name = "ended"
    return f"{name} (process {process.name})"
