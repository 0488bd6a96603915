"""What a server keeps in the temporary folder, and who deletes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modal_emulator import Emulator

SERVER = """
import sys
import modal
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected

with Emulator(*sys.argv[1:]) as emulator, connected(emulator):
    modal.Secret.objects.create("of-it", {"KEY": "value-of-a-secret"})
    print("serves", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder for temporary files, of this process and its children."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


@contextmanager
def server(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server that has a secret, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serves\n"
        try:
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def holding_a_secret(folder: Path) -> list[Path]:
    files = [each for each in folder.rglob("*") if each.is_file()]
    return [each for each in files if b"value-of-a-secret" in each.read_bytes()]


def test_the_next_start_deletes_what_a_killed_server_left(temp: Path) -> None:
    with server() as killed:
        kill(killed)
    assert holding_a_secret(temp)
    with Emulator():
        assert not holding_a_secret(temp)
    assert list(temp.iterdir()) == []


def test_a_folder_that_a_killed_server_was_told_to_use_stays(temp: Path) -> None:
    for name in ("ml-experiments-emulator-12345678", "state"):
        with server(str(temp / name)) as killed:
            kill(killed)
    with Emulator():
        assert len(holding_a_secret(temp)) == 2
    assert list(temp.glob("mle-*")) == []


def test_a_start_leaves_the_folders_of_living_servers_alone(temp: Path) -> None:
    with server() as killed, server() as living:
        before = set(temp.iterdir())
        kill(killed)
        with Emulator():
            left = set(temp.iterdir()) & before
            assert len(left) == len(before) / 2
            assert len(holding_a_secret(temp)) == 1
        living.communicate()
        assert living.returncode == 0
    assert list(temp.iterdir()) == []


def test_a_start_touches_no_folder_that_is_not_a_servers(temp: Path) -> None:
    with server() as killed:
        kill(killed)
    of_killed = [each.rename(temp / f"kept-{each.name}") for each in list(temp.iterdir())]
    for folder in of_killed:
        (temp / folder.name.removeprefix("kept-")).symlink_to(folder)
    without_owner = temp / "mle-abcdefgh"
    without_owner.mkdir()
    before = sorted(temp.rglob("*"))
    with Emulator():
        pass
    assert sorted(temp.rglob("*")) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_leaves_nothing_when_it_is_ended_by(number: signal.Signals, temp: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "modal_emulator", "serve"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("export ")
        assert len(list(temp.iterdir())) == 2
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert list(temp.iterdir()) == []


LOOK = """
import pathlib, sys
import modal
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected

def put():
    pathlib.Path("/root/of-a-container").touch()

def look(temp):
    return [str(each) for each in pathlib.Path(temp).rglob("of-a-container")]

with Emulator(sys.argv[2]) as emulator, connected(emulator):
    app = modal.App("look")
    put, look = (app.function(serialized=True)(each) for each in (put, look))
    with app.run():
        put.remote()
        assert list(pathlib.Path(sys.argv[1]).rglob("of-a-container"))
        print(look.remote(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")
def test_a_container_sees_nothing_of_another_in_a_temporary_folder_outside_of_tmp(
    tmp_path: Path,
) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temp:
        done = subprocess.run(
            [sys.executable, "-c", LOOK, temp, str(tmp_path)],
            env={**os.environ, "TMPDIR": temp},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "[]\n", done.stderr


def test_servers_that_start_at_once_share_the_work(temp: Path) -> None:
    for _ in range(2):
        with server() as killed:
            kill(killed)
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for _ in range(4)
    ]
    assert [each.communicate() for each in starts] == [("serves\n", "")] * 4
    assert list(temp.iterdir()) == []
