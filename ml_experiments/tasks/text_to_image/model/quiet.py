"""Keeps from the terminal what libraries say there and a user can't act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop warnings logged while libraries are imported: which optional parts they lack."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Keep diffusers and transformers from drawing progress bars while they load."""
    with quiet_imports():
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

    libraries = [of_diffusers, of_transformers]
    drawing = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in drawing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawing:
            library.enable_progress_bar()
