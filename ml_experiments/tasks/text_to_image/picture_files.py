"""Writes pictures as PNG files that tell how they were drawn."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ml_experiments.serialization.files import open_atomically

_LONGEST_SLUG = 48


def picture_name(index: int, count: int, prompt: str) -> str:
    """Return a file name such as `007-a-red-seven.png`, which sorts by index."""
    digits = max(3, len(str(count - 1)))
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_LONGEST_SLUG].rstrip("-")
    return f"{index:0{digits}d}-{slug}.png" if slug else f"{index:0{digits}d}.png"


def write_picture(path: Path, picture: Image, texts: Mapping[str, str]) -> None:
    """Write a PNG file with text chunks, whole or not at all.

    Raises:
        OSError: If it can't be written; it names the file.
    """
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    try:
        with open_atomically(path) as file:
            picture.save(file, format="PNG", pnginfo=chunks)
    except OSError as e:
        text = f"a picture could not be written: {e.strerror or e}"
        raise OSError(e.errno or errno.EIO, text, str(path)) from e
