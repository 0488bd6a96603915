"""Temporary folders of processes that were killed are removed by the next."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ml_experiments.serialization.scratch import ScratchFolder

MAKES_ONE = """
import os, signal
from ml_experiments.serialization.scratch import ScratchFolder
folder = ScratchFolder()
print(folder.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def make_old(folder: str) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed = subprocess.run(
        [sys.executable, "-c", MAKES_ONE], capture_output=True, text=True, check=False
    ).stdout.strip()
    (Path(killed) / "copy.py").write_text("x = 1\n")
    make_old(killed)
    other = tmp_path / "somebody-elses"
    other.mkdir()
    link = tmp_path / "ml-experiments-scratch-link"
    link.symlink_to(other)
    make_old(str(other))
    with ScratchFolder() as used:
        make_old(used)
        with ScratchFolder():
            assert Path(used).is_dir()
        assert not Path(killed).exists()
    assert not Path(used).exists()
    assert other.is_dir()
    assert link.is_symlink()
