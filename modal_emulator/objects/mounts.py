"""Mounts: the source files that an app uploads with its functions."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.blobs import BlobStore
from modal_emulator.objects.environments import DEFAULT_ENVIRONMENT
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import content_id, new_id
from modal_emulator.storage.json_file import read_json, write_json

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_MOUNT_ID = re.compile(r"mo-[a-zA-Z0-9]{22}")


@dataclass(frozen=True)
class MountedFile:
    """A file of a mount: its path in containers, its content and its permissions."""

    remote_path: str
    sha256_hex: str
    mode: int


class ContentStore:
    """File contents by SHA-256."""

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self._folder = folder
        self._blobs = blobs
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256_hex: str) -> Path:
        """Return the file for a content, which need not exist.

        Raises:
            GRPCError: If `sha256_hex` is no SHA-256 (INVALID_ARGUMENT).
        """
        if not _SHA256_HEX.fullmatch(sha256_hex):
            message = f"'{sha256_hex}' is not a SHA-256 in 64 hexadecimal digits"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        return self._folder / sha256_hex[:2] / sha256_hex

    def put(self, sha256_hex: str, data: bytes) -> None:
        """Store a content that is part of a request."""
        actual = hashlib.sha256(data).hexdigest()
        self._store(sha256_hex, actual, lambda incoming: incoming.write_bytes(data))

    def put_blob(self, sha256_hex: str, blob_id: str) -> None:
        """Store the content of a blob."""
        blob = self._blobs.path(blob_id)
        with blob.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        self._store(sha256_hex, actual, lambda incoming: incoming.hardlink_to(blob))

    def copy_to(self, sha256_hex: str, destination: Path, mode: int) -> None:
        """Copy a content to a file.

        Raises:
            GRPCError: If it was never uploaded (FAILED_PRECONDITION).
        """
        source = self.path(sha256_hex)
        if not source.is_file():
            message = f"The content of '{destination.name}' was never uploaded"
            raise GRPCError(Status.FAILED_PRECONDITION, message)
        shutil.copyfile(source, destination)
        destination.chmod(mode or 0o644)

    def _store(self, sha256_hex: str, actual: str, write: Any) -> None:
        path = self.path(sha256_hex)
        if actual != sha256_hex:
            message = f"The content has SHA-256 {actual}, not {sha256_hex} as announced"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        path.parent.mkdir(exist_ok=True)
        incoming = path.with_name(new_id("incoming"))
        write(incoming)
        incoming.replace(path)


class MountService:
    """Answers the Mount RPCs and copies the files of mounts for containers."""

    def __init__(self, state_dir: Path, blobs: BlobStore) -> None:
        self.contents = ContentStore(state_dir / "mounts" / "contents", blobs)
        self._folder = state_dir / "mounts"
        self._names_file = self._folder / "names.json"
        self._names: dict[str, str] = read_json(self._names_file, {})
        self._files: dict[str, list[MountedFile]] = {}
        # of Modal's own mounts, which have no files here
        self.global_names: dict[str, str] = {}

    async def MountBatchedCheckExistence(self, request: Message) -> Message:
        """Return which contents have to be uploaded."""
        missing = [each for each in request.sha256_hex_hashes if not self._has(each)]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: Message) -> Message:
        """Store a content if the request has one; return whether it is stored."""
        kind = request.WhichOneof("data_oneof")
        if kind == "data":
            self.contents.put(request.sha256_hex, request.data)
        elif kind == "data_blob_id":
            self.contents.put_blob(request.sha256_hex, request.data_blob_id)
        exists = self._has(request.sha256_hex)
        return api_pb2.MountPutFileResponse(exists=exists)

    async def MountGetOrCreate(self, request: Message) -> Message:
        """Create a mount of stored contents, or find one by name."""
        if request.deployment_name and not request.files:
            mount_id = self._find(request)
        else:
            mount_id = self._create([self._mounted_file(each) for each in request.files])
            if request.deployment_name:
                self._publish(request, mount_id)
        checksum = hashlib.sha256(mount_id.encode()).hexdigest()
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id,
            handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=checksum),
        )

    def require(self, mount_id: str) -> None:
        """Check that there is such a mount.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        self.files([mount_id])

    def files(self, mount_ids: Iterable[str]) -> list[MountedFile]:
        """Return the files of several mounts; for the same path, that of the last one."""
        found: dict[str, MountedFile] = {}
        for mount_id in mount_ids:
            found.update((each.remote_path, each) for each in self._load(mount_id))
        return list(found.values())

    def copy_files(self, mount_ids: Iterable[str], into: Path) -> None:
        """Copy the files of mounts to their paths below a folder."""
        for each in self.files(mount_ids):
            destination = into / each.remote_path.lstrip("/")
            destination.parent.mkdir(parents=True, exist_ok=True)
            self.contents.copy_to(each.sha256_hex, destination, each.mode)

    def _has(self, sha256_hex: str) -> bool:
        return self.contents.path(sha256_hex).is_file()

    def _mounted_file(self, file: Any) -> MountedFile:
        remote_path = PurePosixPath("/", file.filename)
        if ".." in remote_path.parts or "\0" in file.filename or remote_path == PurePosixPath("/"):
            message = f"'{file.filename}' can't be the remote path of a file"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        if not self._has(file.sha256_hex):
            message = f"'{file.filename}' was not uploaded before it was mounted"
            raise GRPCError(Status.FAILED_PRECONDITION, message)
        return MountedFile(remote_path.as_posix(), file.sha256_hex, file.mode & 0o7777)

    def _create(self, files: list[MountedFile]) -> str:
        files = sorted(files, key=lambda each: each.remote_path)
        # the same content has the same id, so that running an app again adds nothing to the folder
        mount_id = content_id("mo", *(repr(each).encode() for each in files))
        path = self._folder / f"{mount_id}.json"
        if not path.exists():
            write_json(path, [asdict(each) for each in files])
        return mount_id

    def _publish(self, request: Any, mount_id: str) -> None:
        key = _name_key(request)
        fail_if_exists = api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS
        if key in self._names and request.object_creation_type == fail_if_exists:
            message = f"Mount '{request.deployment_name}' already exists"
            raise GRPCError(Status.ALREADY_EXISTS, message)
        self._names[key] = mount_id
        write_json(self._names_file, self._names)

    def _find(self, request: Any) -> str:
        key = _name_key(request)
        if key in self._names:
            return self._names[key]
        if request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL:
            # one of Modal's own, with its client, dependencies or a Python: in the emulator,
            # containers use those that are installed on this machine
            name = request.deployment_name
            mount_id = content_id("mo", b"global", name.encode())
            self.global_names[mount_id] = name
            write_json(self._folder / f"{mount_id}.json", [])
            return mount_id
        message = f"Mount '{request.deployment_name}' not found"
        raise GRPCError(Status.NOT_FOUND, message)

    def _load(self, mount_id: str) -> list[MountedFile]:
        if mount_id not in self._files:
            path = self._folder / f"{mount_id}.json"
            if not _MOUNT_ID.fullmatch(mount_id) or not path.is_file():
                raise GRPCError(Status.NOT_FOUND, f"Mount with id '{mount_id}' not found")
            self._files[mount_id] = [MountedFile(**row) for row in read_json(path, [])]
        return self._files[mount_id]


def _name_key(request: Any) -> str:
    environment = request.environment_name or DEFAULT_ENVIRONMENT
    return f"{request.namespace}/{environment}/{request.deployment_name}"
