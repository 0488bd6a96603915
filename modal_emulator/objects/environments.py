"""Environments, the workspace, tokens and the first call of a client."""

from __future__ import annotations

import base64
import json
import time

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.rpc.caller import current_caller
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import new_id
from modal_emulator.storage.state import State

DEFAULT_ENVIRONMENT = "main"
IMAGE_BUILDER_VERSION = "2025.06"
WORKSPACE = "emulator"


class EnvironmentService:
    """Answers the Environment*, Workspace*, Token* and Client* RPCs."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._ids = {data.decode(): env_id for env_id, data in state.objects("environment")}
        if DEFAULT_ENVIRONMENT not in self._ids:
            self._create(DEFAULT_ENVIRONMENT)

    def resolve(self, name: str) -> str:
        """Return the environment's name, the default one for an empty name.

        Raises:
            GRPCError: If there is no such environment (NOT_FOUND).
        """
        if not name:
            return DEFAULT_ENVIRONMENT
        if name not in self._ids:
            known = ", ".join(sorted(self._ids))
            raise GRPCError(
                Status.NOT_FOUND,
                f"Environment '{name}' not found. Known: {known}. "
                f"Create it: modal environment create {name}",
            )
        return name

    def _create(self, name: str) -> str:
        env_id = new_id("en")
        self._ids[name] = env_id
        self._state.put("environment", env_id, name.encode())
        return env_id

    def _metadata(self, name: str) -> api_pb2.EnvironmentMetadata:
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        return api_pb2.EnvironmentMetadata(name=name, settings=settings)

    async def EnvironmentGetOrCreate(self, request: Message) -> Message:
        create = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if create and request.deployment_name and request.deployment_name not in self._ids:
            self._create(request.deployment_name)
        name = self.resolve(request.deployment_name)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=self._ids[name], metadata=self._metadata(name)
        )

    async def EnvironmentCreate(self, request: Message) -> Message:
        if request.name in self._ids:
            raise GRPCError(Status.ALREADY_EXISTS, f"Environment '{request.name}' already exists")
        self._create(request.name)
        return Empty()

    async def EnvironmentDelete(self, request: Message) -> Message:
        name = self.resolve(request.name)
        if name == DEFAULT_ENVIRONMENT:
            raise GRPCError(Status.INVALID_ARGUMENT, f"The environment '{name}' cannot be deleted")
        self._state.delete("environment", self._ids.pop(name))
        return Empty()

    async def EnvironmentList(self, _request: Message) -> Message:
        items = [
            api_pb2.EnvironmentListItem(
                name=name, environment_id=env_id, default=name == DEFAULT_ENVIRONMENT
            )
            for name, env_id in self._ids.items()
        ]
        return api_pb2.EnvironmentListResponse(items=items)

    async def ClientHello(self, _request: Message) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    def id_of(self, name: str) -> str:
        """Return the id of an environment, or an empty string if it was deleted."""
        return self._ids.get(name, "")

    async def WorkspaceNameLookup(self, _request: Message) -> Message:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name=WORKSPACE, username=WORKSPACE)

    async def WorkspaceSettings(self, _request: Message) -> Message:
        return api_pb2.WorkspaceSettingsResponse(
            default_environment_name=DEFAULT_ENVIRONMENT,
            image_builder_version=IMAGE_BUILDER_VERSION,
        )

    async def TokenInfoGet(self, _request: Message) -> Message:
        return api_pb2.TokenInfoGetResponse(
            token_id=current_caller.get().token_id,
            workspace_id="ac-emulator",
            workspace_name=WORKSPACE,
            user_identity=api_pb2.UserIdentity(user_id="us-emulator", username=WORKSPACE),
        )

    async def AuthTokenGet(self, _request: Message) -> Message:
        """Return a token without a signature: the client reads only when it expires."""
        parts = [{"alg": "none"}, {"exp": int(time.time()) + 3600}]
        encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode() for p in parts]
        return api_pb2.AuthTokenGetResponse(token=".".join([*encoded, ""]))
