"""The Python that runs the emulator, and its containers with it."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# `sys.executable` of a Python that was found as `venv/bin/python` on the PATH, or started as
# `../venv/bin/python`, holds only where it was started: not in a container, and not after a chdir.
# The file itself is not resolved, because by that link Python knows its virtual environment.
INTERPRETER = Path(sys.executable).parent.resolve() / Path(sys.executable).name


def folders_of_python(covered: Sequence[str]) -> list[str]:
    """Return the folders of its installation that are in folders which a container has of its own.

    Paths in there, as of the base in `pyvenv.cfg`, may lead through links, so both ends are needed.
    """
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), INTERPRETER.resolve().parent.parent]
    prefixes += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    folders = {each for prefix in prefixes for each in (prefix, prefix.resolve())}
    lost = [each for each in folders if any(each.is_relative_to(folder) for folder in covered)]
    # one in another one is there with it
    tops = [each for each in lost if not any(o in each.parents for o in lost)]
    return [str(each) for each in tops]
