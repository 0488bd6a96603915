"""`ml-experiments`, as a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "ml_experiments"]
ENDS = "tests.support.experiments:Ends"
FIT = "tests.support.experiments:Fit"
PLAIN = "tests.support.experiments.Plain"


def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command and return what it printed."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
    )


def run_script(
    script: Path, *arguments: str, answer: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as make does, with an answer to what it asks."""
    return subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "PYTHONPATH": ""},
        input=answer,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
