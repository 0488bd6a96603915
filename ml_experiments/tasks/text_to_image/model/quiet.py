"""Keeps from the terminal what libraries say there and a user can't act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_LENGTH = 300


def shorten(error: BaseException) -> str:
    """Return the first lines of an exception's message, which may list hundreds of weights."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH].rsplit(' ', 1)[0]} …"


@contextmanager
def quiet_logging(level: int = logging.WARNING) -> Iterator[None]:
    """Drop what libraries log of optional parts that they lack, and of weights that they ignore.

    Args:
        level: Up to which messages are dropped.
    """
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Keep diffusers and transformers from drawing progress bars while they load."""
    with quiet_logging():
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
