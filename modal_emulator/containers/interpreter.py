"""The Python interpreter that runs the emulator and its containers."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# `sys.executable` can be a relative path such as `../venv/bin/python`, which is wrong in a
# container and after a change of the working folder. The file itself is not resolved, because
# Python finds its virtual environment by the path of that link.
INTERPRETER = Path(sys.executable).parent.resolve() / Path(sys.executable).name


def folders_of_python(covered: Sequence[str]) -> list[str]:
    """Return the folders of the installation that are below one of the `covered` folders.

    Those are replaced in a container. A path in the installation, such as that of the base in
    `pyvenv.cfg`, may contain links, so both the path and what it leads to are returned.
    """
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), INTERPRETER.resolve().parent.parent]
    prefixes += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    folders = {each for prefix in prefixes for each in (prefix, prefix.resolve())}
    hidden = [each for each in folders if any(each.is_relative_to(folder) for folder in covered)]
    return [str(each) for each in hidden if not any(other in each.parents for other in hidden)]
