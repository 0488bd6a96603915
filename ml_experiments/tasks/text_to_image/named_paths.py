"""Which names of models, LoRAs and embeddings are paths of this machine, and not of the Hub."""

# Not pathlib's functions, which raise for a name that is too long, or of a user without a home.
# ruff: noqa: PTH100, PTH110, PTH111
from __future__ import annotations

import os
from pathlib import Path

TINY_DIGITS = "tiny-digits"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CHECKPOINT_SUFFIXES = (".safetensors", ".gguf", *PICKLES)
# of names on the Hub: org/name; org/name/FILE
MODEL_SLASHES, ADAPTER_SLASHES = 1, 2
_FILE_SLASHES = range(2, 10)


def is_path(name: str, max_slashes: int) -> bool:
    """Return whether a name stands for a path of this machine, where something is or not.

    Args:
        name: The name.
        max_slashes: How many a name on the Hub has at most, unless it ends like a file.
    """
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        return True
    is_file = name.lower().endswith(CHECKPOINT_SUFFIXES)
    usual = _FILE_SLASHES if is_file else range(max_slashes + 1)
    return name.count("/") not in usual or os.path.exists(name)


def absolute_path(name: str) -> Path:
    """Return the path that a name stands for."""
    return Path(os.path.abspath(os.path.expanduser(name)))


def exists(path: Path) -> bool:
    """Return whether something is there, as far as it can be known."""
    return os.path.exists(path)
