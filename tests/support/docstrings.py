"""The examples in docstrings."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path


def example_of(documented: object) -> str:
    """Return the example in a docstring, as a program."""
    found = re.findall(r"```python\n(.*?)```", inspect.getdoc(documented) or "", re.DOTALL)
    assert len(found) == 1, f"{documented} has {len(found)} examples"
    return textwrap.dedent(found[0])


def run_example(documented: object, folder: Path) -> str:
    """Run the example as a script and return what it prints."""
    (folder / "example.py").write_text(example_of(documented))
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    return done.stdout
