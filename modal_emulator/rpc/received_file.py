"""Writes the body of an HTTP request to a file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web


@dataclass(frozen=True)
class ReceivedFile:
    """A temporary file with the body of a request, and its digests."""

    path: Path
    md5_hex: str
    sha256_hex: str

    def keep(self, destination: Path) -> None:
        """Move the file to its final place."""
        self.path.replace(destination)

    def discard(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


async def receive_file(request: web.Request, folder: Path) -> ReceivedFile:
    """Write the body of a request to a new file in `folder`."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".incoming-")
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in request.content.iter_any():
                file.write(chunk)
                md5.update(chunk)
                sha256.update(chunk)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return ReceivedFile(Path(name), md5.hexdigest(), sha256.hexdigest())
