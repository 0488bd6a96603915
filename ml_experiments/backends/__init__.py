"""Where runs execute, by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ml_experiments.errors import BackendError, suggest

if TYPE_CHECKING:
    from ml_experiments.backends.base import Backend

# name -> module, class; imported on first use
BACKENDS = {
    "local": ("ml_experiments.backends.local.backend", "LocalBackend"),
    "debug": ("ml_experiments.backends.in_process", "DebugBackend"),
    "slurm": ("ml_experiments.backends.slurm.backend", "SlurmBackend"),
    "modal": ("ml_experiments.backends.modal.backend", "ModalBackend"),
}


def open_backend(name: str, **options: Any) -> Backend:
    """Return a new backend; use it in a `with` block.

    Raises:
        BackendError: If there is none of that name.
    """
    if not isinstance(name, str):
        raise BackendError(
            f"backend is {name!r:.100}, where a name is needed; known: {', '.join(BACKENDS)}"
        )
    if name not in BACKENDS:
        raise BackendError(
            f"{name!r} is not a backend{suggest(name, BACKENDS)}; known: {', '.join(BACKENDS)}"
        )
    module, attribute = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)(**options)
    return backend
