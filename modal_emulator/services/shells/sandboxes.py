"""Answers the RPCs by which `modal shell` gets a container: those of a sandbox that sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.function_checks import (
    check_gpu,
    check_placement,
    check_requests,
    check_timeout,
)
from modal_emulator.apps.functions import RunnableFunction
from modal_emulator.containers.container import Container
from modal_emulator.objects.images import ImageService
from modal_emulator.rpc.caller import warn_client
from modal_emulator.rpc.protocol_fields import refuse, warnings
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import new_id

_NAME = "modal shell"
_SLEEPS = ["sleep", "100000"]
# finds a command on the PATH of the container
_FROM_PATH = ("/bin/sh", "-c", 'exec "$@"', "sh")


class Secrets(Protocol):
    """The values of secrets."""

    def environment(self, secret_ids: Iterable[str], /) -> dict[str, str]:
        """Return the variables of several secrets.

        Raises:
            GRPCError: If there is no such secret (NOT_FOUND).
        """


class ShellService:
    """Answers Sandbox{Create,CreateV2,GetTaskId,GetCommandRouterAccess}."""

    def __init__(
        self,
        apps: Apps,
        *,
        images: ImageService,
        secrets: Secrets,
        start: Callable[[RunnableFunction], Container | None],
        access: Callable[[], Message],
    ) -> None:
        self._apps = apps
        self._images = images
        self._secrets = secrets
        self._start = start
        self._access = access
        # sandbox id -> the container
        self._containers: dict[str, Container] = {}

    async def SandboxCreate(self, request: Message) -> Message:
        sandbox_id, _ = self._create(request, {})
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox_id)

    async def SandboxCreateV2(self, request: Message) -> Message:
        """Create the container of a shell without a GPU."""
        env: dict[str, str] = dict(request.ephemeral_secrets.contents)
        # of the clients from 1.6.1 on
        for source in getattr(request, "secret_sources", ()):
            is_stored = source.WhichOneof("source") == "secret_id"
            env |= (
                self._secrets.environment([source.secret_id])
                if is_stored
                else dict(source.env.contents)
            )
        sandbox_id, container = self._create(request, env)
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox_id, task_id=container.task_id, command_router_access=self._access()
        )

    def _create(self, request: Any, env: Mapping[str, str]) -> tuple[str, Container]:
        app, definition = self._apps.get(request.app_id), request.definition
        if app.description != _NAME or list(definition.entrypoint_args) != _SLEEPS:
            raise GRPCError(
                Status.UNIMPLEMENTED,
                "The emulator does not implement sandboxes (modal.Sandbox), only `modal shell`.",
            )
        refuse(_NAME, [request])
        for option in warnings([request]):
            warn_client(f"The emulator records {option} of {_NAME} but it has no effect here.")
        check_timeout("timeout", definition.timeout_secs)
        check_requests(definition.resources)
        gpu = check_gpu(definition.resources.gpu_config)
        self._images.require(definition.image_id)
        for what in self._images.warnings(definition.image_id):
            warn_client(f"The image of {_NAME} is built without {what}.")
        sandbox_id = new_id("sb")
        function = api_pb2.Function(
            function_name=_NAME,
            image_id=definition.image_id,
            mount_ids=definition.mount_ids,
            secret_ids=definition.secret_ids,
            volume_mounts=definition.volume_mounts,
            resources=definition.resources,
            timeout_secs=definition.timeout_secs,
            scheduler_placement=definition.scheduler_placement,
        )
        check_placement(function)
        container = self._start(
            RunnableFunction(
                function_id=sandbox_id,
                app_id=app.app_id,
                name=_NAME,
                base_id=sandbox_id,
                definition_id=sandbox_id,
                params=b"",
                ranked=(function,),
                gpus=(gpu,),
                refused=(),
                command=(*_FROM_PATH, *definition.entrypoint_args),
                env=env,
            )
        )
        if container is None:
            assert gpu is not None
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED, f"The shell needs {gpu.in_words}, and none is free."
            )
        container.kill_after(definition.timeout_secs)
        self._containers[sandbox_id] = container
        return sandbox_id, container

    def _of(self, sandbox_id: str) -> Container:
        if sandbox_id not in self._containers:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox '{sandbox_id}' not found")
        return self._containers[sandbox_id]

    async def SandboxGetTaskId(self, request: Message) -> Message:
        container = self._of(request.sandbox_id)
        return api_pb2.SandboxGetTaskIdResponse(task_id=container.task_id)

    async def SandboxGetCommandRouterAccess(self, _request: Message) -> Message:
        access = self._access()
        return api_pb2.SandboxGetCommandRouterAccessResponse(url=access.url, jwt=access.jwt)
