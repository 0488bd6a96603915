"""Seeds every source of random numbers, those of modules imported later too."""

from __future__ import annotations

import random
import sys
from types import ModuleType

_LARGEST_NUMPY_SEED = 2**32

_seed: int | None = None
_is_watching = False


def seed_everything(seed: int) -> None:
    """Seed random, numpy and torch; the last two when they are imported, if they aren't yet."""
    global _seed
    _seed = seed
    random.seed(seed)
    watch_imports()
    for name in ("numpy", "torch"):
        if name in sys.modules:
            _seed_module(sys.modules[name])


def watch_imports() -> None:
    """Have numpy and torch seeded when they are imported."""
    global _is_watching
    if _is_watching:
        return
    import wrapt  # it imports asyncio; a template does so while it waits

    _is_watching = True
    for name in ("numpy", "torch"):
        wrapt.register_post_import_hook(_seed_module, name)


def _seed_module(module: ModuleType) -> None:
    if _seed is None:
        return
    if module.__name__ == "numpy":
        module.random.seed(_seed % _LARGEST_NUMPY_SEED)
    else:
        module.manual_seed(_seed)
