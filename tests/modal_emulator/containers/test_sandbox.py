"""What a container can and can't do to this machine, and what is left of it at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import containers, contents, new_volume, put, write

register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(
    scope="module",
    params=["namespaces", pytest.param("user_namespaces", marks=pytest.mark.slow)],
)
def emulator(request: pytest.FixtureRequest, state_dir: Path) -> Iterator[Emulator]:
    with (
        Emulator(state_dir, commit_every_s=0.2, sandbox_mode=request.param) as emulator,
        connected(emulator),
    ):
        yield emulator


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def look_around(host_file: str, state_dir: str) -> dict[str, Any]:
    """In a container: see and try what must not reach the machine."""
    errors = []
    for path in ("/usr/planted", "/etc/planted", host_file):
        try:
            Path(path).write_text("planted")
        except OSError as error:
            errors.append(errno.errorcode[error.errno or 0])
    Path("/tmp/from-container").write_text("private")
    Path("/root/from-container").write_text("private")
    Path("/made-by-container").mkdir()
    Path("/made-by-container/file").write_text("private")
    return {
        "errors": errors,
        "working folder": str(Path.cwd()),
        "user": os.getuid(),
        "host file": Path(host_file).exists(),
        "state": [str(each) for each in Path(state_dir).rglob("*")],
        "root": sorted(each.name for each in Path("/root").iterdir() if each.name[0] != "."),
        "python": subprocess.run([sys.executable, "-c", "import modal"], check=False).returncode,
    }


def test_a_container_changes_nothing_on_the_machine(emulator: Emulator, state_dir: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host_file = Path(folder, "of-the-machine")
        host_file.write_text("untouched")
        modal.Secret.objects.create("of-others", {"KEY": "value"}, allow_existing=True)
        before = sorted(Path("/").iterdir())
        with containers({"/data-of-test": new_volume()}) as container:
            seen = container("a")(look_around, str(host_file), str(state_dir))
            assert sorted(Path("/").iterdir()) == before
        assert seen == {
            "errors": ["EROFS", "EROFS", "ENOENT"],
            "working folder": "/root",
            "user": 0,
            "host file": False,
            "state": [],
            "root": ["from-container"],
            "python": 0,
        }
        assert not Path("/tmp/from-container").exists()
        assert not Path("/root/from-container").exists()
        assert host_file.read_text() == "untouched"


def use_volumes(paths: list[str]) -> dict[str, list[str]]:
    """In a container: write to volumes, and return what is beside their mount paths."""
    for path in paths:
        Path(path, "written").write_text(path)
    return {path: sorted(each.name for each in Path(path).parent.iterdir()) for path in paths}


def test_volumes_can_be_anywhere(emulator: Emulator) -> None:
    paths = [
        "/top",
        "/made/for/it",
        "/usr/share/models-of-test",
        "/root/.cache/hub",
        "/tmp/v",
        "/mnt",
    ]
    volumes = {path: new_volume() for path in paths}
    with containers(volumes) as container:
        beside = container("a")(use_volumes, paths)
    for path, volume in volumes.items():
        wait_until(lambda volume=volume: bool(contents(volume)))
        assert contents(volume) == {"written": path.encode()}
    # what the machine has at a folder with a mount path in it is still there
    shared = {each.name for each in Path("/usr/share").iterdir()}
    assert set(beside["/usr/share/models-of-test"]) == shared | {"models-of-test"}
    assert beside["/made/for/it"] == ["it"]
    assert not any(Path(path).exists() for path in paths if path not in ("/mnt", "/tmp/v"))


def test_what_a_container_writes_is_committed_in_the_background(emulator: Emulator) -> None:
    volume = new_volume()
    with containers({"/data": volume}) as container:
        container("a")(write, "file", "1")
        wait_until(lambda: contents(volume) == {"file": b"1"})


def start_daemon() -> int:
    """In a container: start a process in a process group of its own."""
    daemon = subprocess.Popen(["sleep", "1000"], start_new_session=True, cwd=os.environ["DATA"])
    return daemon.pid


def scratch_folders(pid: int) -> list[Path]:
    """Return the folder on this machine that is the root folder of a process."""
    found = []
    for folder in Path(tempfile.gettempdir()).iterdir():
        with contextlib.suppress(OSError):  # another test's, gone meanwhile
            found += [
                root.parent
                for root in folder.glob("*/scratch/root")
                if root.samefile(f"/proc/{pid}/root")
            ]
    return found


@pytest.mark.parametrize("end", ["exits", "is killed"])
def test_nothing_is_left_of_a_container_that(end: str, emulator: Emulator) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    volume = new_volume()
    put(volume, {"file": b"1"})
    with containers({"/data": volume}) as container:
        daemon = container("a")(start_daemon)
        (scratch,) = scratch_folders(daemon)
        assert Path("/proc/self/mounts").read_text() == mounts
        if end == "is killed":
            (task_id,) = [each.task_id for each in emulator.containers() if each.state != "ended"]
            emulator.kill(task_id)
    wait_until(lambda: not scratch.exists())
    wait_until(lambda: not Path(f"/proc/{daemon}").exists())
    assert contents(volume) == {"file": b"1"}


HEIR = """
import os, time
print("ready", flush=True)
while os.getppid() == {parent}: time.sleep(0.0005)
open("inherited", "w").close()
time.sleep(1000)
"""


def start_heir() -> None:
    """In a container: start a process that writes to the volume once its parent has ended."""
    heir = subprocess.Popen(
        [sys.executable, "-c", HEIR.format(parent=os.getpid())],
        start_new_session=True,
        cwd=os.environ["DATA"],
        stdout=subprocess.PIPE,
    )
    assert heir.stdout is not None
    heir.stdout.readline()


def test_no_process_of_a_container_acts_on_its_end() -> None:
    with Emulator(commit_every_s=0.002) as emulator, connected(emulator):
        volume = new_volume()
        with containers({"/data": volume}) as container:
            container("a")(start_heir)
            emulator.kill(emulator.containers()[0].task_id)
            wait_until(lambda: all(each.state == "ended" for each in emulator.containers()))
        assert contents(volume) == {}


REFUSED = "echo 0 > /proc/sys/user/max_mnt_namespaces"
PROGRAM = """
import logging
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import commit, containers, contents, new_volume, write

logging.basicConfig()
with Emulator() as emulator, connected(emulator):
    volume = new_volume()
    with containers({"/data": volume}) as container:
        container("a")(write, "file", "written")
        container("a")(commit, volume)
    print(contents(volume))
"""


@pytest.mark.slow
def test_a_machine_without_namespaces_is_said_to_be_one_and_still_works() -> None:
    if subprocess.run(["unshare", "-Ur", "sh", "-c", REFUSED], check=False).returncode:
        pytest.skip("can't make a machine without mount namespaces here")
    program = ["unshare", "-Ur", "sh", "-c", f'{REFUSED}; exec "$0" -c "$1"']
    done = subprocess.run(
        [*program, sys.executable, PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.stdout == "{'file': b'written'}\n", done.stderr
    assert "This machine refuses mount namespaces" in done.stderr
    assert not Path("/data").exists()
