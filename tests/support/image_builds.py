"""A cache of built image layers for tests, beside the one of whoever runs them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modal_emulator.builds.pythons import find_uv

UV = find_uv() or ""
needs_uv = pytest.mark.skipif(not UV, reason="needs uv")


@contextmanager
def own_layer_cache(folder: Path) -> Iterator[Path]:
    """Keep layers below a folder; the downloads of uv stay where they are."""
    uv_cache = subprocess.run([UV, "cache", "dir"], capture_output=True, text=True, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_CACHE_DIR", uv_cache.stdout.strip())
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "modal-emulator"
