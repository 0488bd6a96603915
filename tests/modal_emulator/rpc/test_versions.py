"""The range of modal that is served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import emulator_run


@pytest.mark.usefixtures("without_modal")
def test_a_newer_installed_modal_is_refused_with_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "modal-1.7.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: modal\nVersion: 1.7.0\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    done = emulator_run("--", "true")
    assert done.returncode != 0
    assert "modal 1.7.0" in done.stderr
    assert 'pip install "modal>=1.6.0,<1.7"' in done.stderr


def test_a_newer_modal_than_tested_is_refused_with_the_range(modal_emulator: Emulator) -> None:
    code = "import modal; modal.Function.from_name('deployed', 'answer').hydrate()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MODAL_OVERRIDE_HEADERS": "x-modal-client-version:1.7.0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "modal 1.7.0" in done.stderr
    assert "modal>=1.6.0,<1.7" in done.stderr
