"""Objects that are not emulated: they can be looked up, so that the rest of a file can be used."""

from __future__ import annotations

from modal_proto import api_pb2

from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import content_id


class Placeholders:
    """Answers the lookups of network file systems and proxies; a function can't use them."""

    async def SharedVolumeGetOrCreate(self, request: Message) -> Message:
        name = f"{request.environment_name}/{request.deployment_name}".encode()
        return api_pb2.SharedVolumeGetOrCreateResponse(shared_volume_id=content_id("sv", name))

    async def ProxyGet(self, request: Message) -> Message:
        name = f"{request.environment_name}/{request.name}".encode()
        return api_pb2.ProxyGetResponse(
            proxy=api_pb2.Proxy(name=request.name, proxy_id=content_id("pr", name))
        )
