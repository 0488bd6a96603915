"""The file system of a container.

With mount namespaces (as root, or in a user namespace as an ordinary user), a container has its
own root folder: the files of this machine, read-only; a private `/root` with the uploaded source
files; a private `/tmp`; folders such as `/opt` in which it can create files of its own; and volumes
at their mount paths, as overlays over a snapshot. The machine itself is not changed.

Where the system refuses namespaces (macOS, some Docker containers), a container sees the file
system of this machine, and the mount paths of volumes in its environment variables are replaced
with the paths of copies: `HF_HOME=/cache/huggingface` works, `open("/cache/x")` does not.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from modal_emulator.containers.interpreter import INTERPRETER, folders_of_python
from modal_emulator.containers.memory_cgroup import MemoryCgroup
from modal_emulator.containers.sandbox_namespace import SCRIPT, Namespace
from modal_emulator.containers.volume_view import CopiedView, OverlayView, VolumeMount, VolumeView
from modal_emulator.objects.mounts import MountService
from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.volumes.store import VolumeStore

log = logging.getLogger(__name__)

SandboxMode = Literal["namespaces", "user_namespaces", "path_rewriting"]

WORKING_FOLDER = "/root"
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp")
PRIVATE_FOLDERS = (WORKING_FOLDER, *TEMPORARY_FOLDERS)
# a container can create files in these, beside what this machine has there
WRITABLE_FOLDERS = ("/home", "/mnt", "/opt", "/var", "/var/cache", "/var/lib", "/var/log")
# without redirect_dir, which user namespaces don't have, renaming a committed folder fails (EXDEV)
OVERLAY_OPTIONS = {
    "namespaces": "redirect_dir=on,metacopy=off,index=off",
    "user_namespaces": "userxattr",
}
_KILL_TIMEOUT_S = 5.0


class Sandbox:
    """The file system of one container, from before its start until after its end."""

    def __init__(self, scratch: Path, mode: SandboxMode) -> None:
        self.mode = mode
        self._scratch = scratch.absolute()
        self._root = self._scratch / "root"
        self._root.mkdir(parents=True)
        self._namespace = Namespace(self._root, OVERLAY_OPTIONS.get(mode, ""))
        self._views: dict[str, VolumeView] = {}
        self._mounted: set[str] = set()
        self._mount_points: set[str] = set()
        self._working_folder = WORKING_FOLDER
        self.cgroup: MemoryCgroup | None = None

    @classmethod
    def prepare(
        cls,
        scratch: Path,
        *,
        mounts: MountService,
        mount_ids: Sequence[str],
        volumes: VolumeStore,
        volume_mounts: Sequence[VolumeMount],
        files: Path | None = None,
        working_folder: str = WORKING_FOLDER,
        visible: Sequence[Path] = (),
        writable: Sequence[Path] = (),
        extendable: Sequence[str] = (),
        hidden: Sequence[Path] = (),
        writable_folders: bool = True,
        max_cores: int | None = None,
        max_mib: int | None = None,
        mode: SandboxMode | None = None,
    ) -> Sandbox:
        """Set up everything before the start of the process; blocks for some milliseconds.

        Args:
            scratch: A folder for this container only; created, and deleted by `close`.
            mounts: All mounts.
            mount_ids: The mounts whose files the container has.
            volumes: All volumes.
            volume_mounts: The volumes that the container has.
            files: The files of the image, each at its path in the container below this folder.
            working_folder: Where its process starts; created if it doesn't exist.
            visible: Folders of this machine that the container can read even if they are in
                `/tmp`, `/root` or a hidden folder.
            writable: Such folders to which it can also write.
            extendable: Folders of this machine in which the container can create entries of its
                own, beside those that are there.
            hidden: Folders of this machine that the container can't see; the Python installation
                stays visible.
            writable_folders: Whether the container can create files in `/opt` and the like.
            max_cores: How many of this machine's cores the container runs on; default: all.
            max_mib: How much memory its processes have together, where the kernel can limit it.
            mode: The kind of isolation; by default the best that this machine supports.
        """
        sandbox = cls(scratch, mode or sandbox_mode(volumes.folder))
        try:
            if max_mib is not None:
                sandbox.cgroup = MemoryCgroup.create(scratch.parent.name, max_mib << 20)
            if files is not None:
                shutil.copytree(files, sandbox._root, symlinks=True, dirs_exist_ok=True)
            for folder in extendable:
                if not Path(folder).is_symlink():
                    (sandbox._root / folder[1:]).mkdir(parents=True, exist_ok=True)
            mounts.copy_files(mount_ids, sandbox._root)
            sandbox._mounted = {each.remote_path for each in mounts.files(mount_ids)}
            for mount in volume_mounts:
                sandbox._add_volume(mount, volumes)
            sandbox._write_plan(
                working_folder=_real_target(working_folder),
                visible=[str(each.absolute()) for each in visible],
                writable=[str(each.absolute()) for each in writable],
                hidden=[str(each.resolve()) for each in hidden],
                writable_folders=WRITABLE_FOLDERS if writable_folders else (),
                max_cores=max_cores,
            )
        except BaseException:
            sandbox.close()
            raise
        return sandbox

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line that becomes `command`, an absolute path, in the sandbox."""
        return [*SCRIPT, "enter", str(self._scratch / "plan.json"), *command]

    def has_entered(self, pid: int) -> bool:
        """Return whether a process that `argv` started is in the sandbox, with its mounts."""
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            # it has ended, or this system has no /proc
            return self.mode == "path_rewriting"
        # nothing is there for a moment while one program replaces another
        return arguments != [b""] and SCRIPT[-1].encode() not in arguments

    def argv_beside(self, pid: int, command: Sequence[str], folder: str = "") -> list[str]:
        """Return the command line that becomes `command` in the sandbox of a running process."""
        namespace = 0 if self.mode == "path_rewriting" else pid
        folder = self.path(folder) if folder else self._working_folder
        return [*SCRIPT, "execute", str(namespace), self._processes_file, folder, *command]

    @property
    def _processes_file(self) -> str:
        return str(self.cgroup.joined_by_writing) if self.cgroup else ""

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return environment variables with the paths that are valid in the sandbox."""
        if self.mode != "path_rewriting":
            return dict(environment)
        return {
            name: os.pathsep.join(self._rewrite(each) for each in value.split(os.pathsep))
            for name, value in environment.items()
        }

    def path(self, remote_path: str) -> str:
        """Return the path by which the container's process reaches a path such as `/root`."""
        if self.mode != "path_rewriting":
            return remote_path
        rewritten = self._rewrite(remote_path)
        return str(self._root) + remote_path if rewritten == remote_path else rewritten

    def commit(self, volume_id: str) -> None:
        """Commit what the container has written to a volume; cheap if that is nothing."""
        self._view(volume_id).commit()

    def reload(self, volume_id: str) -> None:
        """Update a volume in the container to what others have committed.

        Raises:
            OpenFilesError: If a file of the volume is open in the container.
        """
        self._view(volume_id).reload()

    def keep_files(self, folder: Path) -> None:
        """Replace the files of a layer with those that the container has, after its end.

        `/tmp` is left out, and so are the files that were mounted and the mount points.
        """
        self._kill_processes()
        delete_tree(folder)
        folder.mkdir()
        for parent, names, files in os.walk(self._root):
            inside = parent.removeprefix(str(self._root)) or "/"
            left_out = (*TEMPORARY_FOLDERS, "/__modal")
            names[:] = [n for n in names if f"{inside.rstrip('/')}/{n}" not in left_out]
            links = [name for name in names if Path(parent, name).is_symlink()]
            for name in [*files, *links]:
                source, path = Path(parent, name), f"{inside.rstrip('/')}/{name}"
                if path not in self._mounted and not self._is_mount_point(source, path):
                    target = folder / path[1:]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target, follow_symlinks=False)
            if not names and not files and not self._is_mount_point(Path(parent), inside):
                (folder / inside[1:]).mkdir(parents=True, exist_ok=True)

    def _is_mount_point(self, source: Path, path: str) -> bool:
        if path in self._mount_points:
            return True
        if any(PurePosixPath(path).is_relative_to(each) for each in PRIVATE_FOLDERS):
            return False
        host = Path(path)
        if source.is_symlink():
            return host.is_symlink() and host.readlink() == source.readlink()
        # what this machine has there was mounted on an empty file or folder
        return os.path.lexists(path) and (source.is_dir() or source.lstat().st_size == 0)

    def processes(self, group: int) -> list[int]:
        """Return the ids of the container's processes.

        Without namespaces these are the processes of the group, on Linux only.
        """
        if self.mode != "path_rewriting":
            return self._namespace.processes()
        return [pid for pid in _all_processes() if _group_of(pid) == group]

    def close(self) -> None:
        """Kill the remaining processes of the container, and delete its files."""
        if self.mode != "path_rewriting":
            self._kill_processes()
        if self.cgroup is not None:
            self.cgroup.delete()
        for view in self._views.values():
            view.close()
        if self._scratch.exists():
            delete_tree(self._scratch)

    def _view(self, volume_id: str) -> VolumeView:
        if volume_id not in self._views:
            raise FileNotFoundError(f"The volume '{volume_id}' is not mounted in this container")
        return self._views[volume_id]

    def _add_volume(self, mount: VolumeMount, volumes: VolumeStore) -> None:
        target = PurePosixPath(mount.mount_path)
        if not target.is_absolute() or ".." in target.parts or len(target.parts) < 2:
            raise ValueError(
                f"'{mount.mount_path}' can't be the mount path of a volume; "
                "it has to be an absolute path other than /"
            )
        real = VolumeMount(
            mount.volume_id, _real_target(str(target)), mount.read_only, mount.sub_path
        )
        folder = volumes.content(mount.volume_id)
        private = self._scratch / "volumes" / mount.volume_id
        if self.mode == "path_rewriting":
            self._views[mount.volume_id] = CopiedView(real, folder, private)
        else:
            in_memory = _why_not(self.mode, volumes.folder) is not None
            view = OverlayView(real, folder, self._namespace, private, upper_in_memory=in_memory)
            self._views[mount.volume_id] = view

    def _write_plan(
        self,
        *,
        working_folder: str,
        visible: list[str],
        writable: list[str],
        hidden: list[str],
        writable_folders: Sequence[str],
        max_cores: int | None,
    ) -> None:
        views = [view for view in self._views.values() if isinstance(view, OverlayView)]
        views.sort(key=lambda view: view.mount.mount_path)
        for folder in (*PRIVATE_FOLDERS, *writable_folders, working_folder):
            (self._root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for folder in ("tmp", "var/tmp"):
            (self._root / folder).chmod(0o1777)
        self._working_folder = self.path(working_folder)
        plan: dict[str, Any] = {
            "root": None if self.mode == "path_rewriting" else str(self._root),
            "user_namespace": self.mode == "user_namespaces",
            "working_folder": self._working_folder,
            "max_cores": max_cores,
            "cgroup": self._processes_file,
            "private": PRIVATE_FOLDERS,
            "hidden": hidden,
            "visible": visible,
            "writable": writable,
            "kept": folders_of_python([*PRIVATE_FOLDERS, *hidden]),
            "volumes": [view.plan() for view in views],
        }
        self._mount_points = {*plan["visible"], *plan["writable"], *plan["kept"]}
        (self._scratch / "plan.json").write_text(json.dumps(plan), encoding="utf-8")

    def _rewrite(self, path: str) -> str:
        for view in self._views.values():
            target = view.mount.mount_path
            if isinstance(view, CopiedView) and (path == target or path.startswith(target + "/")):
                return str(view.path) + path.removeprefix(target)
        return path

    def _kill_processes(self) -> None:
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while self._root.exists() and (left := self._namespace.processes()):
            if time.monotonic() > deadline:
                log.error("Processes %s of a container don't end", left)
                return
            for pid in left:
                # it may have just ended
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def _all_processes() -> list[int]:
    proc = Path("/proc")
    return [int(each.name) for each in proc.glob("[0-9]*")] if proc.is_dir() else []


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@lru_cache
def sandbox_mode(state_dir: Path) -> SandboxMode:
    """Return the best isolation that this machine supports, found by trying once."""
    reasons = []
    modes: list[SandboxMode] = ["namespaces", "user_namespaces"]
    for mode in modes:
        for folder in (state_dir, None):
            reason = _why_not(mode, folder)
            if reason is None:
                return mode
            reasons.append(f"{mode}: {reason}")
    log.warning(
        "This machine refuses mount namespaces, so containers see its files, and volumes only "
        "through environment variables. %s",
        "; ".join(reasons),
    )
    return "path_rewriting"


@lru_cache
def _why_not(mode: SandboxMode, state_dir: Path | None) -> str | None:
    """Try a mode with a volume in a folder (None: in memory); return the error, if any."""
    if sys.platform != "linux":
        return "needs Linux"
    with tempfile.TemporaryDirectory(dir=state_dir, prefix="probe-") as name:
        folder = Path(name)
        for each in ("root/root", "snapshots/0", "private"):
            (folder / each).mkdir(parents=True)
        volume = {
            "target": "/probe",
            "read_only": False,
            "snapshots": f"{name}/snapshots",
            "inner_snapshots": "/__modal/snapshots",
            "private": f"{name}/private" if state_dir is not None else None,
            "inner_private": "/__modal/private",
            "tmpfs_options": "mode=755",
            "lower": "/__modal/snapshots/0",
            "upper": "/__modal/private/upper",
            "work": "/__modal/private/work",
            "overlay_options": OVERLAY_OPTIONS[mode],
        }
        plan: dict[str, Any] = {
            "root": f"{name}/root",
            "user_namespace": mode == "user_namespaces",
            "working_folder": "/probe",
            "max_cores": None,
            "cgroup": "",
            "private": PRIVATE_FOLDERS,
            "hidden": [],
            "visible": [],
            "writable": [],
            "kept": folders_of_python(PRIVATE_FOLDERS),
            "volumes": [volume],
        }
        plan_file = folder / "plan.json"
        plan_file.write_text(json.dumps(plan), encoding="utf-8")
        command = [str(INTERPRETER), "-I", "-S", "-c", "open('written', 'w').close()"]
        done = subprocess.run(
            [*SCRIPT, "enter", str(plan_file), *command], capture_output=True, text=True
        )
        for left in (folder / "private").rglob("*"):
            left.chmod(0o700)
    return None if done.returncode == 0 else done.stderr.strip()


def _real_target(mount_path: str) -> str:
    """Return a mount path with the links of this machine, such as /lib, resolved."""
    if any(PurePosixPath(mount_path).is_relative_to(folder) for folder in PRIVATE_FOLDERS):
        return mount_path
    return os.path.realpath(mount_path)
