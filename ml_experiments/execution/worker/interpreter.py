"""How a new interpreter is started for a template or a worker."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def command_for(module: str, search_path: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that calls a module's `main()`.

    Not `-m`, which would make the module the `__main__` that `multiprocessing` imports again in
    each process that it spawns. With `-P`, no module of the working folder hides a standard one.

    Args:
        module: The module.
        search_path: What to add at the end of `sys.path`.
        *arguments: The command line's arguments.
    """
    code = f"import sys; sys.path += {list(search_path)!r}; from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments]
