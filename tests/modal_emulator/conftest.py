"""The emulator that the tests of this folder talk to."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modal_emulator import Emulator

MODAL_APPS = Path(__file__).parent / "modal_apps"
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
