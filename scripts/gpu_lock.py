"""Makes and checks the lock of the GPU image.

    python scripts/gpu_lock.py make     requirements-gpu.in -> requirements-gpu.lock, by uv
    python scripts/gpu_lock.py check    pip's resolver installs the lock, as a dry run

Both resolve for Linux x86-64 and Python 3.11 from metadata: nothing of the gigabytes is
downloaded. pip's settings of this machine are ignored, so that the lock names only what PyPI
has. Needs uv; `check` takes about half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "ml_experiments/backends/modal/gpu_image"
INPUT, LOCK = "requirements-gpu.in", "requirements-gpu.lock"
PYTHON = "3.11"
OLDEST_GLIBC, NEWEST_GLIBC = 5, 28  # manylinux_2_5 … manylinux_2_28
NEW_PIP = "pip>=25.3"  # older ones download whole wheels for a dry run


def make() -> None:
    """Compile the lock."""
    command = ["pip", "compile", INPUT, "--output-file", LOCK, "--python-version", PYTHON]
    command += ["--python-platform", f"x86_64-manylinux_2_{NEWEST_GLIBC}"]
    command += ["--no-header", "--annotation-style", "line", "--quiet", "--no-config"]
    _uv(*command)


def check() -> None:
    """Let pip resolve the lock; fails unless every pin and every dependency is satisfied."""
    platforms = [f"manylinux_2_{i}_x86_64" for i in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    options = [f"--platform={platform}" for platform in platforms]
    options += [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as nowhere:
        options += [f"--target={nowhere}", "--dry-run", "--ignore-installed", "--quiet"]
        _uv("tool", "run", "--from", NEW_PIP, "pip", "install", *options, "-r", LOCK)
    print(f"{LOCK}: every pin exists and pip finds no conflict")


def _uv(*arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_FIND")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=FOLDER, env=environment, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    if sys.argv[1:] not in (["make"], ["check"]):
        sys.exit(__doc__)
    make() if sys.argv[1] == "make" else check()
