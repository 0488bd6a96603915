"""A project folder of a user, and the real `modal` command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modal_emulator import Emulator

Modal = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Where the user works."""
    return tmp_path


@pytest.fixture
def run_modal(modal_emulator: Emulator, project: Path) -> Modal:
    """Run the `modal` command in the project and return what it printed."""

    def run(*arguments: str, exit_code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            env={**os.environ, **modal_emulator.environment},
            capture_output=True,
            text=True,
            cwd=project,
            timeout=240,
            check=False,
        )
        assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
