"""A script that runs a command in a new mount namespace or in a container's, or remounts a volume.

    python sandbox_mounts.py enter PLAN.json COMMAND ...
    python sandbox_mounts.py execute PID CGROUP FOLDER COMMAND ...
    python sandbox_mounts.py remount PID TARGET   (then one line of JSON on standard input)

It imports only the standard library, so that Python starts it without `site` in milliseconds. The
mounts disappear when the last process in the namespace has ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
import termios
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY = 0x1
# newer system calls have the same number on every architecture; pivot_root is older
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# folders of the host that are not made read-only: devices and interfaces of the kernel
KERNEL_FOLDERS = ("/dev", "/proc", "/sys")

EXIT_BUSY = 3
EXIT_FAILED = 125
EXIT_NOT_FOUND = 127

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """Run `enter`, `execute` or `remount`."""
    if arguments[0] == "enter":
        plan = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
        join_cgroup(plan["cgroup"])
        if plan["root"] is not None:
            enter(plan)
        _make_folder(plan["working_folder"])
        os.chdir(plan["working_folder"])
        _end_with_the_server()
        if plan["max_cores"] and sys.platform == "linux":
            cores = sorted(os.sched_getaffinity(0))
            # not all containers on the same ones
            first = os.getpid() % len(cores)
            chosen = (cores + cores)[first : first + min(plan["max_cores"], len(cores))]
            os.sched_setaffinity(0, chosen)
        # ignored in background processes of a shell, which a container would inherit
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(arguments[2], arguments[2:])
    elif arguments[0] == "execute":
        join_cgroup(arguments[2])
        execute(int(arguments[1]), arguments[3], arguments[4:])
    else:
        remount(int(arguments[1]), arguments[2])


def enter(plan: dict[str, Any]) -> None:
    """Move this process into a new mount namespace and root folder, according to a plan."""
    _unshare(user_namespace=plan["user_namespace"])
    # mounts in the namespace must not appear on the host
    mount(None, "/", None, MS_REC | MS_SLAVE)
    root = plan["root"]
    for path in [*plan["private"], *plan["hidden"]]:
        _make_folder(root + path)
    # before anything else is mounted below the scratch folder, which may be in a visible one
    for path in [*plan["visible"], *plan["kept"]]:
        bind(path, root + path)
    for path in plan["writable"]:
        bind(path, root + path, read_only=False)
    for each in plan["volumes"]:
        _make_folder(root + each["target"])
        bind(each["snapshots"], root + each["inner_snapshots"])
        _make_folder(root + each["inner_private"])
        if each["private"] is None:
            mount("tmpfs", root + each["inner_private"], "tmpfs", 0, each["tmpfs_options"])
        else:
            bind(each["private"], root + each["inner_private"], read_only=False)
    own = {*plan["private"], *plan["hidden"], *plan["visible"], *plan["kept"], *plan["writable"]}
    _fill("/", root, own | {each["target"] for each in plan["volumes"]})
    mount(root, root, None, MS_BIND | MS_REC)
    os.chdir(root)
    _check(_libc.syscall(_pivot_root_number(), b".", b"."), "pivot_root", root)
    _check(_libc.umount2(b".", MNT_DETACH), "umount", "the old root")
    os.chdir("/")
    for each in plan["volumes"]:
        mount_volume(each)


def mount_volume(plan: dict[str, Any]) -> None:
    """Mount a volume in the root folder of this process."""
    target, lower = plan["target"], plan["lower"]
    _make_folder(target)
    if plan["read_only"]:
        bind(lower, target)
        return
    upper, work = plan["upper"], plan["work"]
    _make_folder(upper)
    _make_folder(work)
    layers = f"lowerdir={_escape(lower)},upperdir={upper},workdir={work}"
    mount("overlay", target, "overlay", 0, f"{layers},{plan['overlay_options']}")


def join_cgroup(processes: str) -> None:
    """Become one of the processes of a cgroup, given the file that lists them; "" is none."""
    if processes:
        Path(processes).write_text(str(os.getpid()), encoding="ascii")


def execute(pid: int, folder: str, command: list[str]) -> None:
    """Become a command in the container that a process belongs to; 0 stands for no namespace."""
    _end_with_the_server()
    if pid:
        cores = os.sched_getaffinity(pid)
        join_namespaces(pid)
        os.sched_setaffinity(0, cores)
    try:
        os.chdir(folder)
    except OSError as e:
        os.write(2, f"{folder}: {e.strerror}\n".encode())
        sys.exit(EXIT_FAILED)
    if os.isatty(0):
        # so that Ctrl-C there ends what runs in the foreground
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as e:
        os.write(2, f"{command[0]}: {e.strerror}\n".encode())
        sys.exit(EXIT_NOT_FOUND)


def join_namespaces(pid: int) -> None:
    """Move this process into the namespaces of another one."""
    namespaces = [("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS)]
    opened = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), kind) for name, kind in namespaces]
    same_user = Path(f"/proc/{pid}/ns/user").samefile("/proc/self/ns/user")
    for descriptor, kind in opened:
        # entering the current user namespace again would be an error
        if not (same_user and kind == CLONE_NEWUSER):
            _check(_libc.setns(descriptor, kind), "setns", f"process {pid}")
        os.close(descriptor)


def remount(pid: int, target: str) -> None:
    """Unmount a volume in the namespace of a process, then mount it as standard input says."""
    join_namespaces(pid)
    if _libc.umount2(os.fsencode(target), 0):
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            sys.exit(EXIT_BUSY)
        raise OSError(code, os.strerror(code), target)
    os.write(1, b"unmounted\n")
    mount_volume(json.loads(sys.stdin.readline()))


def bind(source: str, target: str, *, read_only: bool = True) -> None:
    """Mount a file or folder at a second path."""
    if Path(source).is_dir():
        _make_folder(target)
    else:
        _make_folder(str(Path(target).parent))
        Path(target).touch()
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        _make_read_only(target)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    """Call mount(2)."""
    arguments = [None if each is None else os.fsencode(each) for each in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), data)
    _check(result, "mount", f"{source} at {target}")


def _end_with_the_server() -> None:
    """Make the kernel kill the container when the server ends, even if that is killed."""
    if sys.platform == "linux":
        _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl", "parent death signal")


def _unshare(*, user_namespace: bool) -> None:
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | (CLONE_NEWUSER if user_namespace else 0)
    _check(_libc.unshare(flags), "unshare", "mount namespace")
    if user_namespace:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")


def _fill(host_folder: str, root: str, own: set[str]) -> None:
    """Mount the content of a folder of the host, except for the paths in `own`."""
    with os.scandir(host_folder) as entries:
        for entry in entries:
            inner = root + entry.path
            if entry.path in own:
                _make_folder(inner)
            elif not os.path.lexists(inner):
                _show(entry, inner)
            elif entry.is_dir(follow_symlinks=False) and Path(inner).is_dir():
                _fill(entry.path, root, own)


def _show(entry: os.DirEntry[str], inner: str) -> None:
    if entry.is_symlink():
        Path(inner).symlink_to(Path(entry.path).readlink())
    else:
        bind(entry.path, inner, read_only=entry.path not in KERNEL_FOLDERS)


def _make_folder(path: str) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)


def _make_read_only(target: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        os.fsencode(target),
        AT_RECURSIVE,
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, "mount_setattr", target)


def _pivot_root_number() -> int:
    machine = os.uname().machine
    if machine not in SYS_PIVOT_ROOT:
        raise OSError(errno.ENOSYS, f"pivot_root is not known for {machine}")
    return SYS_PIVOT_ROOT[machine]


def _escape(path: str) -> str:
    # these characters separate the options and layers of an overlay
    for character in "\\,:":
        path = path.replace(character, "\\" + character)
    return path


def _check(result: int, action: str, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{action} ({what}): {os.strerror(code)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as e:
        os.write(2, f"The container's file system could not be set up: {e}\n".encode())
        sys.exit(EXIT_FAILED)
