"""Uploads to volumes and downloads from them.

Clients upload whole files to volumes of version 1, and files in blocks to those of version 2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from grpclib import GRPCError, Status
from modal._utils.blob_utils import BLOCK_SIZE
from modal_proto import api_pb2

from modal_emulator.objects.mounts import MountService
from modal_emulator.rpc.http_endpoint import HttpEndpoint
from modal_emulator.rpc.received_file import receive_file
from modal_emulator.volumes.folder import Upload
from modal_emulator.volumes.store import VolumeStore

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024


class VolumeTransfer:
    """Receives uploads, and makes URLs for downloads."""

    def __init__(self, store: VolumeStore, http: HttpEndpoint, mounts: MountService) -> None:
        self._store = store
        self._http = http
        self._contents = mounts.contents
        http.app.router.add_put("/volume-blocks/{sha256}", self._receive_block)
        http.app.router.add_get("/volume-files/{path:.+}", self._send)

    def whole_files(self, files: Sequence[Any]) -> list[Upload]:
        """Return the uploads of a version 1 request, whose contents were uploaded before.

        Raises:
            GRPCError: If a content was never uploaded (FAILED_PRECONDITION).
        """
        uploads = []
        for file in files:
            content = self._contents.path(file.sha256_hex)
            if not content.is_file():
                message = f"The content of '{file.filename}' was never uploaded"
                raise GRPCError(Status.FAILED_PRECONDITION, message)
            write = partial(self._contents.copy_to, file.sha256_hex, mode=file.mode)
            uploads.append(Upload(file.filename, content.stat().st_size, write))
        return uploads

    def missing_blocks(self, files: Sequence[Any]) -> list[Any]:
        """Return the missing blocks of a version 2 request, with URLs to upload them to."""
        missing: dict[str, Any] = {}
        for file_index, file in enumerate(files):
            for block_index, block in enumerate(file.blocks):
                sha256 = block.contents_sha256.hex()
                if sha256 in missing or self._has_block(sha256):
                    continue
                missing[sha256] = api_pb2.VolumePutFiles2Response.MissingBlock(
                    file_index=file_index,
                    block_index=block_index,
                    put_url=self._http.signed_url(f"/volume-blocks/{sha256}"),
                )
        return list(missing.values())

    def files_of_blocks(self, files: Sequence[Any]) -> list[Upload]:
        """Return the uploads of a version 2 request, whose blocks have all been uploaded."""
        return [Upload(each.path, each.size, partial(self._join, each)) for each in files]

    def urls(self, file: Path, start: int, length: int) -> list[str]:
        """Return the URLs for a part of a file, one for each block, in order."""
        path = file.relative_to(self._store.folder).as_posix()
        urls = []
        position = start
        while position < start + length:
            end = min(start + length, (position // BLOCK_SIZE + 1) * BLOCK_SIZE)
            urls.append(self._http.signed_url(f"/volume-files/{path}", start=position, end=end))
            position = end
        return urls

    def _has_block(self, sha256: str) -> bool:
        return sha256 == _EMPTY_SHA256 or (self._store.blocks / sha256).is_file()

    def _join(self, file: Any, destination: Path) -> None:
        with destination.open("wb") as joined:
            for index, block in enumerate(file.blocks):
                sha256 = block.contents_sha256.hex()
                joined.seek(index * BLOCK_SIZE)
                if sha256 != _EMPTY_SHA256:
                    joined.write((self._store.blocks / sha256).read_bytes())
            # the client uploads each block without the zeros at its end
            joined.truncate(file.size)
        destination.chmod(file.mode or 0o644)

    async def _receive_block(self, request: web.Request) -> web.Response:
        self._http.require_signature(request)
        expected = request.match_info["sha256"]
        received = await receive_file(request, self._store.blocks)
        if received.sha256_hex != expected or not _SHA256_HEX.fullmatch(expected):
            received.discard()
            raise web.HTTPBadRequest(text=f"The block's SHA-256 is not {expected} as announced")
        received.keep(self._store.blocks / expected)
        return web.Response(body=expected.encode())

    async def _send(self, request: web.Request) -> web.StreamResponse:
        self._http.require_signature(request)
        path = self._store.folder / request.match_info["path"]
        start, end = int(request.query["start"]), int(request.query["end"])
        if not path.is_file() or path.stat().st_size < end:
            raise web.HTTPGone(text="This download has expired; ask for the file again")
        response = web.StreamResponse(headers={"Content-Length": str(end - start)})
        await response.prepare(request)
        with path.open("rb") as file:
            file.seek(start)
            for position in range(start, end, _CHUNK_BYTES):
                await response.write(file.read(min(_CHUNK_BYTES, end - position)))
        await response.write_eof()
        return response
