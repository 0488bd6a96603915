"""Deletes folders that containers wrote to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def delete_tree(folder: Path) -> None:
    """Delete a folder, even if it has folders in it that its owner may not read or write."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            below = Path(parent, name)
            if not below.is_symlink():
                below.chmod(0o700)
    shutil.rmtree(folder)
