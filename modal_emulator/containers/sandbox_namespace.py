"""The mount namespace of a running container, accessed from the server."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modal_emulator.containers import sandbox_mounts
from modal_emulator.containers.interpreter import INTERPRETER

SCRIPT = [str(INTERPRETER), "-I", "-S", sandbox_mounts.__file__]


class BusyMountError(Exception):
    """Raised when a mount can't be changed because a file in it is open."""


class Namespace:
    """The mount namespace with the root folder `root`, which exists while a process is in it."""

    def __init__(self, root: Path, overlay_options: str) -> None:
        self.root = root
        self.overlay_options = overlay_options

    def processes(self) -> list[int]:
        """Return the ids of the processes in the namespace."""
        try:
            status = self.root.stat()
        except FileNotFoundError:
            # deleted, after all of them had ended
            return []
        identity = (status.st_dev, status.st_ino)
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and _root_of(folder) == identity:
                found.append(int(folder.name))
        return found

    def path_inside(self, path: str) -> Path:
        """Return the path by which the server can access a path of the namespace."""
        return Path(f"/proc/{self._any_process()}/root{path}")

    @contextmanager
    def unmounted(self, target: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Unmount a volume; yields a function that mounts it again according to a plan.

        Raises:
            BusyMountError: If a file in it is open.
        """
        script = subprocess.Popen(
            [*SCRIPT, "remount", str(self._any_process()), target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert script.stdout is not None
        with script:
            if not script.stdout.readline():
                _, error = script.communicate()
                if script.returncode == sandbox_mounts.EXIT_BUSY:
                    raise BusyMountError(target)
                raise OSError(f"{target} could not be unmounted: {error}")

            def mount_again(plan: dict[str, Any]) -> None:
                _, error = script.communicate(json.dumps(plan) + "\n")
                if script.returncode:
                    raise OSError(f"{target} could not be mounted again: {error}")

            yield mount_again

    def open_file_below(self, target: str) -> str | None:
        """Return a file below a path that a process of the namespace has open, if there is one."""
        for pid in self.processes():
            for link in _opened_by(pid):
                try:
                    opened = str(link.readlink())
                except OSError:
                    # just closed
                    continue
                if opened == target or opened.startswith(target + "/"):
                    return opened
        return None

    def _any_process(self) -> int:
        processes = self.processes()
        if not processes:
            raise ProcessLookupError("The container has ended")
        # the oldest: the container itself, not a script that remounts a volume (it may have the
        # lower id, for ids begin anew at some number)
        return min(processes, key=_started_at)


def _started_at(pid: int) -> float:
    """Return when a process has started, in ticks since the start of this machine."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # just ended
        return math.inf
    return float(status.rpartition(")")[2].split()[19])  # the 22nd of all; a name can have spaces


def _root_of(process: Path) -> tuple[int, int] | None:
    try:
        status = (process / "root").stat()
    except OSError:
        # just ended, or another user's process
        return None
    return status.st_dev, status.st_ino


def _opened_by(pid: int) -> list[Path]:
    process = Path(f"/proc/{pid}")
    try:
        return [process / "cwd", *(process / "fd").iterdir()]
    except OSError:
        # just ended
        return []
