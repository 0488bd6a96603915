"""What `ml-experiments run` asks of Modal, read from what the emulator received."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_server_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\ndef train(config):\n    print('it runs')\n    time.sleep(60)\n"
    )
    program = (sys.executable, "-m", "ml_experiments")
    server = subprocess.Popen(
        [*program, "emulator", "serve", "--state", tmp_path / "state"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    environment = dict(os.environ)
    while "MODAL_TOKEN_SECRET" not in environment or "MODAL_SERVER_URL" not in environment:
        name, is_variable, value = server.stdout.readline().strip().partition("=")
        if is_variable:
            environment[name.removeprefix("export ")] = value.strip("'")
    client = subprocess.Popen(
        [*program, "run", "mine.train", "--gpu", "l4"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert client.stdout is not None
        while "it runs" not in client.stdout.readline():
            assert client.poll() is None
        server.kill()
        output, errors = client.communicate(timeout=120)
    finally:
        for process in (client, server):
            process.kill()
            process.wait()
    assert client.returncode != 0
    assert output or errors
    assert "Traceback" not in errors
