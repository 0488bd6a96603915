"""Containers run the Python that runs the emulator, however that was started."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")

PROGRAM = """
import logging, os, sys
import modal
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected

logging.basicConfig()
started_in = os.getcwd()
os.chdir("/")

def look(path):
    return sys.prefix, os.path.exists(path)

with Emulator() as emulator, connected(emulator):
    app = modal.App("look")
    function = app.function(serialized=True)(look)
    with app.run():
        print(*function.remote(f"{sys.prefix}/../of-the-machine"))
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder in /tmp, which containers have one of their own of, with a venv in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        venv = [sys.executable, "-m", "venv", "--without-pip", f"{name}/venv"]
        subprocess.run(venv, check=True)
        packages = Path(name, "venv", *Path(sysconfig.get_path("purelib")).parts[-3:])
        packages.rmdir()
        packages.symlink_to(sysconfig.get_path("purelib"))
        Path(name, "elsewhere").mkdir()
        Path(name, "of-the-machine").touch()
        yield Path(name)


@pytest.mark.parametrize(
    ("start", "working_folder", "path"),
    [
        ("venv/bin/python", "", ""),
        ("../venv/bin/python", "elsewhere", ""),
        # Python calls itself //tmp/...
        ("{folder}/venv/bin/python", "/", ""),
        ("python", "", "venv/bin"),
    ],
)
def test_containers_are_isolated_with_a_python_in_tmp_started_as(
    start: str, working_folder: str, path: str, folder: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1"', start.format(folder=str(folder)[1:]), PROGRAM],
        cwd=folder / working_folder,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{folder}/venv False\n", done.stderr
