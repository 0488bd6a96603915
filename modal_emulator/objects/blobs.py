"""Arguments, results and files that are too large for a gRPC message."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.rpc.http_endpoint import HttpEndpoint
from modal_emulator.rpc.received_file import receive_file
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import new_id

# as on Modal, where results of calls expire after 7 days
BLOB_LIFETIME_S = 7 * 24 * 3600.0
_BLOB_ID = re.compile(r"bl-[a-zA-Z0-9]{22}")


class BlobStore:
    """Blobs as files of one folder, uploaded and downloaded by HTTP."""

    def __init__(self, state_dir: Path, http: HttpEndpoint) -> None:
        self._folder = state_dir / "blobs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._http = http
        http.app.router.add_put("/blobs/{blob_id}", self._receive)
        http.app.router.add_get("/blobs/{blob_id}", self._send)
        self._delete_expired()

    async def BlobCreate(self, request: Message) -> Message:
        """Return the URL to upload a blob to, with one PUT whatever its size."""
        blob_id = new_id("bl")
        digest = base64.b64decode(request.content_sha256_base64).hex()
        url = self._http.signed_url(f"/blobs/{blob_id}", sha256=digest)
        return api_pb2.BlobCreateResponse(
            blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[url])
        )

    async def BlobGet(self, request: Message) -> Message:
        """Return the URL to download a blob from."""
        self.path(request.blob_id)
        url = self._http.signed_url(f"/blobs/{request.blob_id}")
        return api_pb2.BlobGetResponse(download_url=url)

    def put(self, data: bytes) -> str:
        """Store a blob and return its id."""
        blob_id = new_id("bl")
        path = self._folder / blob_id
        incoming = path.with_suffix(".incoming")
        incoming.write_bytes(data)
        incoming.replace(path)
        return blob_id

    def read(self, blob_id: str) -> bytes:
        """Return the content of a blob.

        Raises:
            GRPCError: If it was never uploaded or has expired (NOT_FOUND).
        """
        return self.path(blob_id).read_bytes()

    def path(self, blob_id: str) -> Path:
        """Return the file of a blob.

        Raises:
            GRPCError: If it was never uploaded or has expired (NOT_FOUND).
        """
        path = self._folder / blob_id
        if not _BLOB_ID.fullmatch(blob_id) or not path.is_file():
            message = f"Blob '{blob_id}' not found: it was never uploaded, or has expired"
            raise GRPCError(Status.NOT_FOUND, message)
        return path

    async def _receive(self, request: web.Request) -> web.Response:
        self._http.require_signature(request)
        received = await receive_file(request, self._folder)
        if received.sha256_hex != request.query["sha256"]:
            received.discard()
            raise web.HTTPBadRequest(text="The SHA-256 you specified did not match the content.")
        received.keep(self._folder / request.match_info["blob_id"])
        return web.Response(headers={"ETag": f'"{received.md5_hex}"'})

    async def _send(self, request: web.Request) -> web.FileResponse:
        self._http.require_signature(request)
        path = self._folder / request.match_info["blob_id"]
        if not path.is_file():
            raise web.HTTPNotFound(text=f"Blob '{path.name}' not found")
        return web.FileResponse(path)

    def _delete_expired(self) -> None:
        oldest = time.time() - BLOB_LIFETIME_S
        for path in self._folder.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink()
