"""The server as a context manager."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import emulator_run

pytestmark = pytest.mark.usefixtures("without_modal")


def test_two_servers_cannot_share_a_state_folder(tmp_path: Path) -> None:
    with Emulator(tmp_path):
        done = emulator_run("--state", str(tmp_path), "--", "true")
    assert done.returncode != 0
    assert "Another emulator uses the state folder" in done.stderr
    assert emulator_run("--state", str(tmp_path), "--", "true").returncode == 0


def test_a_stopped_emulator_says_so() -> None:
    emulator = Emulator()
    with emulator:
        assert emulator.functions() == []
    with pytest.raises(RuntimeError, match="not running"):
        emulator.functions()
