"""What `ml-experiments run` asks of Modal, read from what the emulator received."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ml_experiments.emulator import Emulator


def test_cpu_and_memory_reach_modal(modal_emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(config): return 1\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ml_experiments", "run", "mine.train"),
            *("--gpu", "l4", "--cpu", "2", "--memory", "3"),
        ],
        env={**os.environ, **modal_emulator.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    function = modal_emulator.functions("run_remote")[-1]
    assert function.gpus == ("L4",)
    assert function.cpu is not None
    assert function.cpu[0] == 2
    assert function.memory_mb is not None
    assert function.memory_mb[0] == 3 * 1024


def test_a_package_that_only_the_container_misses_is_added_with_pip(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def train(config): __import__('absent_' + 'package')\n")
    done = subprocess.run(
        [sys.executable, "-m", "ml_experiments", "run", "mine.train", "--gpu", "l4"],
        env={**os.environ, **modal_emulator.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "add it with --pip absent_package" in done.stdout
