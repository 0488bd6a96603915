"""The server: creates its parts and listens on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.calls import Calls
from modal_emulator.apps.function_checks import check_access
from modal_emulator.apps.functions import Functions
from modal_emulator.apps.logs import Logs, LogService
from modal_emulator.builds.builder import ImageBuilder
from modal_emulator.builds.pythons import find_uv
from modal_emulator.containers.container import Container, launch_container
from modal_emulator.containers.launch import Launcher
from modal_emulator.containers.sandbox import Sandbox, SandboxMode, sandbox_mode
from modal_emulator.control.control import Control
from modal_emulator.control.control_http import serve_control
from modal_emulator.objects.blobs import BlobStore
from modal_emulator.objects.dicts import DictService
from modal_emulator.objects.environments import EnvironmentService
from modal_emulator.objects.images import ImageService
from modal_emulator.objects.layers import LayerStore, cache_folder
from modal_emulator.objects.mounts import MountService
from modal_emulator.objects.placeholders import Placeholders
from modal_emulator.objects.queues import QueueService
from modal_emulator.objects.secrets import SecretService
from modal_emulator.rpc.caller import current_caller
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.http_endpoint import HttpEndpoint
from modal_emulator.rpc.rpc import Guard, RpcServer, Servicer, compose
from modal_emulator.rpc.versions import check_installed
from modal_emulator.scheduling.app_clients import AppClients
from modal_emulator.scheduling.autoscaler import Autoscaler
from modal_emulator.scheduling.background_commits import commit_in_background
from modal_emulator.scheduling.memory_limits import watch_memory
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.scheduler import Scheduler
from modal_emulator.scheduling.termination import Termination
from modal_emulator.services.apps import AppService
from modal_emulator.services.billing import BillingService
from modal_emulator.services.build_functions import BuildFunctions
from modal_emulator.services.calls import CallService
from modal_emulator.services.containers import ContainerService
from modal_emulator.services.functions import FunctionService
from modal_emulator.services.shells.command_router import CommandRouter
from modal_emulator.services.shells.sandboxes import ShellService
from modal_emulator.services.suggestions import SuggestionService
from modal_emulator.services.volumes import VolumeService
from modal_emulator.services.web_endpoints import WebEndpoints
from modal_emulator.storage.state import State
from modal_emulator.storage.temporary_folders import CONTAINERS_PREFIX, TemporaryFolder
from modal_emulator.volumes.store import VolumeStore

log = logging.getLogger(__name__)

ImageMode = Literal["build", "record"]
_LOOPBACK = "127.0.0.1"


def image_mode(given: str | None) -> ImageMode | None:
    """Return what a setting asks for; None is what this machine can do.

    Raises:
        ValueError: If it is neither "build" nor "record".
    """
    if not given:
        return None
    if given not in ("build", "record"):
        raise ValueError(f'Images are "build" or "record", not "{given}".')
    return "build" if given == "build" else "record"


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server; see `Emulator`."""

    port: int = 0
    stop_grace_s: float = 5.0
    reconnect_s: float = 2.0
    heartbeat_limit_s: float = 50.0
    commit_every_s: float = 3.0
    sandbox_mode: SandboxMode | None = None
    images: ImageMode | None = None


class Server:
    """One server over one state folder."""

    def __init__(self, state_dir: Path, options: ServerOptions) -> None:
        check_installed()
        self.state_dir = state_dir
        self.options = options
        self.token_id = f"ak-{secrets.token_hex(11)}"
        self.token_secret = f"as-{secrets.token_hex(24)}"
        self.url = ""
        self.http = HttpEndpoint()
        self._faults = Faults()
        self._state = State(state_dir)
        self._make_storage(state_dir)
        self._make_registries()
        self._make_runtime(state_dir)
        self.control = self._make_control()
        self._router = CommandRouter(self._pools, lambda: self.url)
        self._methods = compose(self._services())
        self._guard = Guard(
            self.token_id,
            self.token_secret,
            self._faults,
            self._environments.resolve,
            self._check_container,
        )
        self._rpc: RpcServer | None = None
        self._background: list[asyncio.Task[None]] = []

    def _make_storage(self, state_dir: Path) -> None:
        self._environments = EnvironmentService(self._state)
        self._blobs = BlobStore(state_dir, self.http)
        self._mounts = MountService(state_dir, self._blobs)
        self._secrets = SecretService(state_dir)
        self._volumes = VolumeStore(state_dir)
        self._dicts, self._queues = DictService(state_dir), QueueService(state_dir)
        self._images = ImageService(self._state, self._faults, self._mounts.global_names)

    def _make_registries(self) -> None:
        self._functions = Functions(self._state)
        self._apps = Apps(self._state, self._environments, self._functions)
        self._calls = Calls(self._state)
        self._logs = Logs(self._state)
        self._pools = ContainerPools()

    def _make_runtime(self, state_dir: Path) -> None:
        self._launcher = Launcher(
            self._apps,
            self._images,
            self._mounts,
            self._secrets,
            self._volumes,
            state_dir=state_dir,
            sandbox_mode=self.options.sandbox_mode,
        )
        self._run_folder = TemporaryFolder(CONTAINERS_PREFIX)
        # lambdas, because these parts call each other in circles
        self._autoscaler = Autoscaler(
            self._pools,
            self._functions,
            self._apps,
            self._logs,
            self._faults,
            spawn=self._spawn,
            on_exit=lambda *exited: self._scheduler.on_exit(*exited),
            on_removed=lambda app: self._termination.mark_stopped(app),
            run_dir=self._run_folder.path,
        )
        self._scheduler = Scheduler(
            self._pools,
            self._functions,
            self._apps,
            self._calls,
            self._faults,
            self._logs,
            scale=self._autoscaler.scale,
            scale_all=self._autoscaler.scale_all,
            on_done=lambda app: self._clients.on_done(app),
            preempt=lambda container, grace_s: self._termination.preempt(container, grace_s),
            kill=lambda container: self._termination.kill(container),
        )
        self._termination = Termination(
            self._pools,
            self._apps,
            self._calls,
            self._logs,
            self._scheduler,
            self._autoscaler,
            stop_grace_s=self.options.stop_grace_s,
        )
        self._clients = AppClients(
            self._apps,
            self._termination,
            reconnect_s=self.options.reconnect_s,
            heartbeat_limit_s=self.options.heartbeat_limit_s,
        )

        self._images.builder = self._make_builder()
        self._web = WebEndpoints(
            self._functions,
            self._apps,
            self._calls,
            self._scheduler,
            self._blobs,
            token_id=self.token_id,
            token_secret=self.token_secret,
        )

    def _services(self) -> list[object]:
        function_service = FunctionService(
            self._functions,
            self._apps,
            images=self._images,
            mounts=self._mounts,
            secrets=self._secrets,
            volumes=self._volumes,
            on_settings=self._autoscaler.scale_function,
            web=self._web,
        )
        app_service = AppService(
            self._apps,
            self._functions,
            self._pools,
            self._clients,
            self._autoscaler,
            self._termination,
        )
        return [
            self._environments,
            self._blobs,
            self._mounts,
            self._secrets,
            VolumeService(self._volumes, self.http, self._mounts, self._current_sandbox),
            self._dicts,
            self._queues,
            Placeholders(),
            self._images,
            function_service,
            app_service,
            BillingService(self._pools, self._apps, self._environments.id_of),
            SuggestionService(self._apps),
            LogService(self._logs, self._apps),
            CallService(self._calls, self._functions, self._apps, self._pools, self._scheduler),
            ContainerService(
                self._pools, self._calls, self._apps, self._scheduler, self._termination
            ),
            self._router,
            ShellService(
                self._apps,
                images=self._images,
                secrets=self._secrets,
                start=self._autoscaler.start_shell,
                access=self._router.access,
            ),
        ]

    def _make_builder(self) -> ImageBuilder | None:
        """Return what builds images, or None if they are only recorded."""
        images = self.options.images
        if images == "record":
            return None
        uv = find_uv()
        why_not = "there is no uv" if uv is None else ""
        if (self.options.sandbox_mode or sandbox_mode(self._volumes.folder)) == "path_rewriting":
            why_not = "this machine refuses mount namespaces"
        if why_not:
            if images == "build":
                raise ValueError(f"Images can't be built, because {why_not}.")
            log.warning(
                "Images are recorded and not built, because %s: "
                "containers have the packages of this environment.",
                why_not,
            )
            return None
        assert uv is not None
        functions = BuildFunctions(
            self._functions,
            self._calls,
            self._logs,
            self._pools,
            self._scheduler,
            self._launcher,
        )
        return ImageBuilder(
            LayerStore(cache_folder()),
            self._mounts,
            self._secrets,
            self._volumes,
            uv=uv,
            scratch=self._run_folder.path,
            hidden=[self.state_dir, self._run_folder.path],
            sandbox_mode=self.options.sandbox_mode,
            run_function=functions.run,
        )

    def _make_control(self) -> Control:
        control = Control(
            self._functions,
            self._apps,
            self._calls,
            self._images,
            self._logs,
            self._pools,
            self._secrets,
            self._volumes,
            self._faults,
            self._termination,
            self._autoscaler,
            self._scheduler,
        )
        serve_control(self.http.app, control, self.token_secret)
        return control

    def _current_sandbox(self) -> Sandbox | None:
        task_id = current_caller.get().task_id
        container = self._pools.container(task_id) if task_id else None
        return container.sandbox if container else None

    def _check_container(self, task_id: str, rpc_name: str) -> None:
        container = self._pools.container(task_id)
        if container is not None:
            check_access(container.definition, rpc_name)

    async def _spawn(self, container: Container) -> None:
        await launch_container(container, self._launcher, self._container_server)

    def _container_server(self, task_id: str) -> RpcServer:
        return RpcServer([Servicer(self._methods, self._guard, task_id)])

    async def start(self) -> None:
        """Listen on the loopback interface, and start the background tasks."""
        try:
            await self._listen()
        except BaseException:
            await self.stop()
            raise
        self._background = [
            asyncio.create_task(self._clients.watch_heartbeats()),
            asyncio.create_task(commit_in_background(self._pools, self.options.commit_every_s)),
            asyncio.create_task(watch_memory(self._pools)),
        ]
        await self._web.open_deployed()
        self._autoscaler.keep_deployed_warm()

    async def _listen(self) -> None:
        await self.http.start(_LOOPBACK)
        self._rpc = RpcServer(
            [Servicer(self._methods, self._guard, None), self._router],
            self._clients.connection_lost,
        )
        # with host and port instead of a socket, asyncio sets TCP_NODELAY
        await self._rpc.start(_LOOPBACK, self.options.port)
        listening = self._rpc._server.sockets[0]
        self.url = f"http://{_LOOPBACK}:{listening.getsockname()[1]}"

    async def stop(self) -> None:
        """End all containers, stop listening and close the state."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._termination.close()
        await self._images.close()
        await asyncio.to_thread(self._run_folder.delete)
        if self.url and self._rpc is not None:
            self._rpc.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._rpc.wait_closed(), 5.0)
        await self._web.close()
        await self.http.stop()
        self._dicts.close()
        self._queues.close()
        self._state.close()
