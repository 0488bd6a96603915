"""Answers the RPCs of volumes."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.containers.sandbox import Sandbox
from modal_emulator.containers.volume_view import OpenFilesError
from modal_emulator.objects.mounts import MountService
from modal_emulator.rpc.http_endpoint import HttpEndpoint
from modal_emulator.rpc.rpc import Message
from modal_emulator.volumes.folder import VolumeFolder
from modal_emulator.volumes.limit import VolumeFullError
from modal_emulator.volumes.store import VolumeStore
from modal_emulator.volumes.transfer import VolumeTransfer

_LIST_BATCH = 500
_FILE_TYPES = {
    stat.S_IFREG: api_pb2.FileEntry.FILE,
    stat.S_IFDIR: api_pb2.FileEntry.DIRECTORY,
    stat.S_IFLNK: api_pb2.FileEntry.SYMLINK,
    stat.S_IFIFO: api_pb2.FileEntry.FIFO,
    stat.S_IFSOCK: api_pb2.FileEntry.SOCKET,
}


class VolumeService:
    """Answers the Volume RPCs."""

    def __init__(
        self,
        store: VolumeStore,
        http: HttpEndpoint,
        mounts: MountService,
        current_sandbox: Callable[[], Sandbox | None],
    ) -> None:
        self._store = store
        self._transfer = VolumeTransfer(store, http, mounts)
        self._current_sandbox = current_sandbox

    async def VolumeGetOrCreate(self, request: Message) -> Message:
        """Create or find a volume."""
        await asyncio.to_thread(self._store.delete_expired)
        volume = self._store.get_or_create(
            request.deployment_name,
            request.environment_name,
            request.object_creation_type,
            request.version,
        )
        metadata = self._store.metadata(volume.object_id)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.object_id, version=metadata.version, metadata=metadata
        )

    async def VolumeGetById(self, request: Message) -> Message:
        """Find a volume by id."""
        return api_pb2.VolumeGetByIdResponse(
            volume_id=request.volume_id, metadata=self._store.metadata(request.volume_id)
        )

    async def VolumeHeartbeat(self, request: Message) -> Message:
        """Extend the lifetime of an ephemeral volume."""
        self._store.objects.heartbeat(request.volume_id)
        return Empty()

    async def VolumeList(self, request: Message) -> Message:
        """List the named volumes."""
        items = [
            api_pb2.VolumeListItem(
                label=volume.name,
                volume_id=volume.object_id,
                created_at=volume.created_at,
                metadata=self._store.metadata(volume.object_id),
            )
            for volume in self._store.objects.page(request.environment_name, request.pagination)
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name=request.environment_name)

    async def VolumeRename(self, request: Message) -> Message:
        """Rename a volume."""
        self._store.objects.rename(request.volume_id, request.name)
        return Empty()

    async def VolumeDelete(self, request: Message) -> Message:
        """Delete a volume with everything in it."""
        await asyncio.to_thread(self._store.delete, request.volume_id)
        return Empty()

    async def VolumeCommit(self, request: Message) -> Message:
        """Commit what the calling container has written."""
        self._store.require(request.volume_id)
        sandbox = self._calling_sandbox("commit")
        with _errors_for_client():
            await asyncio.to_thread(sandbox.commit, request.volume_id)
        # only reload() shows the container what others have committed
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: Message) -> Message:
        """Update the volume in the calling container to what others have committed."""
        self._store.require(request.volume_id)
        sandbox = self._calling_sandbox("reload")
        with _errors_for_client():
            await asyncio.to_thread(sandbox.reload, request.volume_id)
        return Empty()

    def VolumeListFiles(self, request: Message) -> AsyncIterator[Message]:
        """List a folder of a version 1 volume."""
        return self._list_files(request, api_pb2.VolumeListFilesResponse)

    def VolumeListFiles2(self, request: Message) -> AsyncIterator[Message]:
        """List a folder of a version 2 volume."""
        return self._list_files(request, api_pb2.VolumeListFiles2Response)

    async def VolumeGetFile2(self, request: Message) -> Message:
        """Return the URLs to download the blocks of a file from."""
        content = self._content(request)
        with _errors_for_client():
            file = await asyncio.to_thread(content.take_download, request.path)
        size = file.stat().st_size
        start = min(request.start, size)
        length = min(request.len or size, size - start)
        return api_pb2.VolumeGetFile2Response(
            get_urls=self._transfer.urls(file, start, length), size=size, start=start, len=length
        )

    async def VolumePutFiles(self, request: Message) -> Message:
        """Write files whose contents have been uploaded."""
        content = self._content(request)
        uploads = self._transfer.whole_files(request.files)
        overwrite = not request.disallow_overwrite_existing_files
        with _errors_for_client():
            await asyncio.to_thread(content.put, uploads, overwrite=overwrite)
        return Empty()

    async def VolumePutFiles2(self, request: Message) -> Message:
        """Return which blocks have to be uploaded, or write the files if there are none."""
        content = self._content(request)
        missing = self._transfer.missing_blocks(request.files)
        uploads = self._transfer.files_of_blocks(request.files)
        overwrite = not request.disallow_overwrite_existing_files
        with _errors_for_client():
            # with missing blocks, check only, so that errors come before the upload
            put_or_check = content.check if missing else content.put
            await asyncio.to_thread(put_or_check, uploads, overwrite=overwrite)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeRemoveFile(self, request: Message) -> Message:
        """Delete a file or folder."""
        content = self._content(request)
        with _errors_for_client():
            await asyncio.to_thread(content.remove, request.path, recursive=request.recursive)
        return Empty()

    async def VolumeCopyFiles(self, request: Message) -> Message:
        """Copy files and (in a version 2 volume) folders inside a volume."""
        content = self._content(request)
        with _errors_for_client():
            await asyncio.to_thread(
                content.copy,
                list(request.src_paths),
                request.dst_path,
                recursive=request.recursive,
            )
        return Empty()

    # the RPCs for version 2 volumes take the same requests
    VolumeRemoveFile2 = VolumeRemoveFile
    VolumeCopyFiles2 = VolumeCopyFiles

    async def _list_files(
        self, request: Message, reply_type: Callable[..., Any]
    ) -> AsyncIterator[Message]:
        content = self._content(request)
        with _errors_for_client():
            listed = await asyncio.to_thread(
                content.list_entries, request.path, recursive=request.recursive
            )
        if request.HasField("max_entries"):
            listed = listed[: request.max_entries]
        for first in range(0, len(listed), _LIST_BATCH):
            batch = listed[first : first + _LIST_BATCH]
            entries = [_file_entry(path, status) for path, status in batch]
            yield reply_type(entries=entries)

    def _content(self, request: Any) -> VolumeFolder:
        return self._store.content(request.volume_id)

    def _calling_sandbox(self, action: str) -> Sandbox:
        sandbox = self._current_sandbox()
        if sandbox is None:
            message = f"Volume.{action}() can only be called in a container that has the volume"
            raise GRPCError(Status.FAILED_PRECONDITION, message)
        return sandbox


def _file_entry(path: str, status: os.stat_result) -> Any:
    return api_pb2.FileEntry(
        # containers can create names that are not UTF-8
        path=os.fsencode(path).decode("utf-8", errors="replace"),
        type=_FILE_TYPES.get(stat.S_IFMT(status.st_mode), api_pb2.FileEntry.UNSPECIFIED),
        mtime=int(status.st_mtime),
        size=status.st_size,
    )


@contextmanager
def _errors_for_client() -> Iterator[None]:
    """Convert errors of volumes to the statuses that the client converts to its exceptions."""
    try:
        yield
    except OpenFilesError as e:
        # the client depends on this wording
        message = f"there are open files preventing the operation: {e}"
        raise GRPCError(Status.FAILED_PRECONDITION, message) from e
    except VolumeFullError as e:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, str(e)) from e
    except FileNotFoundError as e:
        raise GRPCError(Status.NOT_FOUND, str(e)) from e
    except FileExistsError as e:
        raise GRPCError(Status.ALREADY_EXISTS, str(e)) from e
    except (IsADirectoryError, NotADirectoryError, ValueError) as e:
        raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e
