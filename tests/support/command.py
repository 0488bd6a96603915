"""`ml-experiments`, as a whole process."""

from __future__ import annotations

import subprocess
import sys
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
