"""Prepares the files, environment variables and arguments of a container process."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import random
import socket
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

from modal_emulator.apps.apps import AppRecord, Apps
from modal_emulator.apps.functions import RunnableFunction
from modal_emulator.containers.interpreter import INTERPRETER
from modal_emulator.containers.sandbox import WORKING_FOLDER, Sandbox, SandboxMode
from modal_emulator.containers.volume_view import VolumeMount
from modal_emulator.objects.image_records import ImageRecord
from modal_emulator.objects.images import ImageService
from modal_emulator.objects.layers import Layer
from modal_emulator.objects.mounts import MountService
from modal_emulator.objects.secrets import SecretService
from modal_emulator.rpc.gpus import GpuRequest
from modal_emulator.volumes.store import VolumeStore

# the only environment variables of this machine that a container has
INHERITED_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
# https://modal.com/docs/guide/resources
NUMBER_OF_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TOKEN_S = 24 * 3600
_CONTAINER_SITE = Path(__file__).parent / "container_site"


@dataclass(frozen=True)
class Launch:
    """The command, environment and file system of a container process."""

    argv: list[str]
    env: dict[str, str]
    sandbox: Sandbox
    # the layer that the container builds, which keeps what it has written
    built: Layer | None = None


def new_address() -> str:
    """Return an IPv6 address for one container, which means one of this machine's loopback (Linux).

    Each has one of its own, so that all may listen on the same port.
    """
    number = random.SystemRandom().randrange(254 * 256 * 254)
    return f"::ffff:127.{1 + number // (256 * 254)}.{number // 254 % 256}.{1 + number % 254}"


@dataclass(frozen=True)
class Placement:
    """A container's id, its GPU with the rank in the function's list, and its folder.

    `address` is where other containers reach it; empty where they don't.
    """

    task_id: str
    rank: int
    gpu: GpuRequest | None
    folder: Path
    address: str = ""

    @property
    def shared(self) -> Path:
        """The part of the folder that the container can access."""
        return self.folder / "io"

    @property
    def socket(self) -> Path:
        """The unix socket of the server for this container."""
        return self.shared / "rpc"

    @property
    def arguments(self) -> Path:
        """The file with the `ContainerArguments` message."""
        return self.shared / "arguments"


def _layout_with_dependencies(layout: Any, function: Any, volumes: VolumeStore) -> Any:
    """Add every object that the function refers to to the app's layout, and return it."""
    known = {entry.object_id for entry in layout.objects}
    for dependency in function.object_dependencies:
        if dependency.object_id not in known:
            entry = layout.objects.add(object_id=dependency.object_id)
            if dependency.object_id.startswith("vo-"):
                entry.volume_metadata.CopyFrom(volumes.metadata(dependency.object_id))
    return layout


def container_environment(
    image: ImageRecord,
    secrets: Mapping[str, str],
    modal_variables: Mapping[str, str],
    root: str,
    layer: Layer | None = None,
    *,
    threads: int | None = None,
) -> dict[str, str]:
    """Return a container's variables: inherited ones, the image's, secrets and Modal's own.

    `threads` is the number that libraries for linear algebra use, None for their default.
    """
    env = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # so that `python` in a container is the interpreter that runs it
    scripts = str((layer.python if layer else INTERPRETER).parent)
    host_path = os.pathsep.join([scripts, env.get("PATH", os.defpath)])
    env |= {"PATH": host_path, "HOME": root, "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
    if threads is not None:
        env |= dict.fromkeys(NUMBER_OF_THREADS, str(threads))
    env.update(image.env)
    env.update(secrets)
    # programs of this machine are found even if the image replaces the PATH
    path = string.Template(env["PATH"]).safe_substitute(PATH=host_path)
    env["PATH"] = path if host_path in path else f"{path}{os.pathsep}{host_path}"
    python_path = [env.get("PYTHONPATH", ""), root, str(_CONTAINER_SITE)]
    env["PYTHONPATH"] = os.pathsep.join(part for part in python_path if part)
    if layer is not None:
        # after the image's own packages, of which some may be other versions
        env["MODAL_EMULATOR_CLIENT"] = layer.client
    env.update(modal_variables)
    return env


def threads_of(resources: Any) -> int | None:
    """Return how many threads a container's libraries use, from the cores that are requested."""
    # new in modal 1.6.1
    if not resources.milli_cpu or getattr(resources, "skip_num_threads_env_vars", False):
        return None
    return math.ceil(int(resources.milli_cpu) / 1000)


def identity_token(function: RunnableFunction, place: Placement, app: AppRecord) -> str:
    """Return an OIDC token with the claims of Modal's, but not signed, so nobody accepts it.

    https://modal.com/docs/guide/oidc-integration
    """
    now_s = int(time.time())
    claims = {
        "iss": "https://oidc.modal.com",
        "aud": "oidc.modal.com",
        "iat": now_s,
        "exp": now_s + _TOKEN_S,
        "workspace_id": "ac-emulator",
        "environment_name": app.environment,
        "app_id": app.app_id,
        "app_name": app.name or app.description,
        "function_id": function.function_id,
        "function_name": function.name,
        "container_id": place.task_id,
    }
    named = ("workspace_id", "environment_name", "app_name", "function_name", "container_id")
    claims["sub"] = "modal:" + ":".join(f"{name}:{claims[name]}" for name in named)
    parts = [json.dumps(each).encode() for each in ({"alg": "none", "typ": "JWT"}, claims)]
    encoded = [base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts]
    return ".".join([*encoded, ""])


class Launcher:
    """Prepares containers."""

    def __init__(
        self,
        apps: Apps,
        images: ImageService,
        mounts: MountService,
        secrets: SecretService,
        volumes: VolumeStore,
        *,
        state_dir: Path,
        sandbox_mode: SandboxMode | None,
    ) -> None:
        self._apps = apps
        self._images = images
        self._mounts = mounts
        self._secrets = secrets
        self._volumes = volumes
        self._state_dir = state_dir
        self._sandbox_mode = sandbox_mode
        # function id -> the layer that a function of `Image.run_function` builds
        self.building: dict[str, Layer] = {}

    async def prepare(self, function: RunnableFunction, place: Placement) -> Launch:
        """Write the arguments of a container and set up its sandbox.

        Raises:
            GRPCError: If something that the function refers to was deleted (NOT_FOUND).
        """
        app = self._apps.get(function.app_id)
        definition = function.ranked[place.rank]
        image = self._image_of(definition)
        built = self.building.get(function.function_id)
        layer = built or self._images.layer(image.image_id)
        secrets = {**self._secrets.environment(definition.secret_ids), **function.env}
        place.shared.mkdir(parents=True)
        place.arguments.write_bytes(self._arguments(function, definition, place, app))
        sandbox = await asyncio.to_thread(
            Sandbox.prepare,
            place.folder / "scratch",
            mounts=self._mounts,
            # what was copied into a layer is among its files
            mount_ids=[*(() if layer else image.copied_mount_ids), *definition.mount_ids],
            volumes=self._volumes,
            volume_mounts=[
                VolumeMount(each.volume_id, each.mount_path, each.read_only, each.sub_path)
                for each in definition.volume_mounts
            ],
            files=layer.files if layer else None,
            working_folder=image.workdir or WORKING_FOLDER,
            # its own modules may be in a folder that is private in containers, such as /tmp
            visible=[place.shared, _CONTAINER_SITE, *(layer.visible if layer else ())],
            writable=[built.env] if built else [],
            # with the secrets and files of other containers
            hidden=[self._state_dir, place.folder.parent],
            # what a step of an image writes there could not be kept
            writable_folders=built is None,
            max_cores=math.ceil(definition.resources.milli_cpu_max / 1000) or None,
            max_mib=definition.resources.memory_mb_max or None,
            mode=self._sandbox_mode,
        )
        env = container_environment(
            image,
            secrets,
            self._modal_variables(function, place, app),
            sandbox.path("/root"),
            layer,
            threads=threads_of(definition.resources),
        )
        python = layer.python if layer else INTERPRETER
        command = function.command or [str(python), "-m", "modal._container_entrypoint"]
        return Launch(sandbox.argv(command), sandbox.environment(env), sandbox, built)

    def _image_of(self, definition: Any) -> ImageRecord:
        if not definition.image_id:
            return ImageRecord(image_id="")
        return self._images.get(definition.image_id)

    def _arguments(
        self, function: RunnableFunction, definition: Any, place: Placement, app: AppRecord
    ) -> bytes:
        layout = _layout_with_dependencies(self._apps.layout(app), definition, self._volumes)
        arguments = api_pb2.ContainerArguments(
            task_id=place.task_id,
            function_id=function.function_id,
            app_id=app.app_id,
            function_def=definition,
            serialized_params=function.params,
            environment_name=app.environment,
            app_layout=layout,
        )
        encoded: bytes = arguments.SerializeToString()
        return encoded

    def _modal_variables(
        self, function: RunnableFunction, place: Placement, app: AppRecord
    ) -> dict[str, str]:
        gpu = place.gpu
        variables = {
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": f"unix://{place.socket}",
            "MODAL_TASK_ID": place.task_id,
            "MODAL_IMAGE_ID": function.ranked[place.rank].image_id,
            "MODAL_IDENTITY_TOKEN": identity_token(function, place, app),
            "MODAL_ENVIRONMENT": app.environment,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(place.arguments),
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_UNSPECIFIED",
            "MODAL_REGION": "emulator",
            "MODAL_EMULATOR_GPU": gpu.device if gpu else "",
            "MODAL_EMULATOR_GPU_COUNT": str(gpu.count) if gpu else "0",
        }
        if "eth0" not in {name for _, name in socket.if_nameindex()}:
            variables["MODAL_EMULATOR_LOOPBACK"] = "1"
        if place.address:
            variables["MODAL_EMULATOR_I6PN"] = place.address
        if gpu is None:
            # as on Modal, a function without a GPU has none
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return variables
