"""All volumes of a server: their names and ids, their content and their limits."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from modal_proto import api_pb2

from modal_emulator.objects.named_objects import NamedObject, NamedObjects
from modal_emulator.rpc.rpc import EnumValue, Message
from modal_emulator.volumes.folder import VolumeFolder
from modal_emulator.volumes.limit import VolumeLimit

# how long an uploaded block is kept for the request that makes it part of a file
BLOCK_LIFETIME_S = 3600.0


class VolumeStore:
    """Volumes by name or id; each is a folder."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir.absolute() / "volumes"
        self.blocks = self.folder / "blocks"
        self.blocks.mkdir(parents=True, exist_ok=True)
        self.objects = NamedObjects(self.folder / "index.json", prefix="vo", noun="Volume")
        self._lock = threading.Lock()
        self._expiry = threading.Lock()
        self._open: dict[str, VolumeFolder] = {}
        self._limits: dict[str, VolumeLimit] = {}
        self.delete_expired()

    def get_or_create(
        self, name: str, environment: str, creation_type: int, version: int
    ) -> NamedObject:
        """Return the volume of a GetOrCreate request; raises what `NamedObjects` raises."""
        if version == api_pb2.VOLUME_FS_VERSION_UNSPECIFIED:
            version = api_pb2.VOLUME_FS_VERSION_V1
        found, _ = self.objects.get_or_create(name, environment, creation_type, version=version)
        return found

    def require(self, volume_id: str) -> None:
        """Check that there is such a volume.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        self.objects.get(volume_id)

    def metadata(self, volume_id: str) -> Message:
        """Return the message that describes a volume to a client."""
        volume = self.objects.get(volume_id)
        version: EnumValue = volume.version
        return api_pb2.VolumeMetadata(
            version=version, name=volume.name, creation_info=volume.creation_info()
        )

    def content(self, volume_id: str) -> VolumeFolder:
        """Return the content of a volume.

        Raises:
            GRPCError: If there is no such volume (NOT_FOUND).
        """
        volume = self.objects.get(volume_id)
        with self._lock:
            if volume_id not in self._open:
                self._open[volume_id] = VolumeFolder(self.folder / volume_id)
            folder = self._open[volume_id]
        folder.limit = self._limits.get(volume.name, VolumeLimit())
        return folder

    def set_limit(self, name: str, limit: VolumeLimit) -> None:
        """Limit the size of a volume, which need not exist yet, in containers that start later."""
        self._limits[name] = limit

    def clear_limits(self) -> None:
        """Remove all limits."""
        self._limits.clear()

    def delete(self, volume_id: str) -> None:
        """Delete a volume and its content."""
        self.objects.delete(volume_id)
        with self._lock:
            self._open.pop(volume_id, None)
        # there is no folder if the volume was never used
        if (self.folder / volume_id).exists():
            shutil.rmtree(self.folder / volume_id)

    def delete_expired(self) -> None:
        """Delete expired ephemeral volumes, and uploaded blocks that became part of no file."""
        with self._expiry:
            for volume in self.objects.expired():
                self.delete(volume.object_id)
            oldest = time.time() - BLOCK_LIFETIME_S
            for block in self.blocks.glob("[!.]*"):
                if block.stat().st_mtime < oldest:
                    block.unlink()
