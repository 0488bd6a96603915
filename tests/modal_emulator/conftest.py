"""The emulator that the tests of this folder talk to."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS

# Top-level modules, as in a user's project: modal then ships the file and not all tests.
sys.path.insert(0, str(MODAL_APPS))


@pytest.fixture
def run_modal(modal_emulator: Emulator) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the real `modal` command against the session's emulator."""

    def run(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            env={**os.environ, **modal_emulator.environment},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=MODAL_APPS,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"modal {arguments}: {done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def start_modal(modal_emulator: Emulator) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the real `modal` command and leave it running."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "modal", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=MODAL_APPS,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def without_modal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forget the session's emulator: each command brings its own."""
    for name in list(os.environ):
        if name.startswith("MODAL_") and name != "MODAL_EMULATOR_IMAGES":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
