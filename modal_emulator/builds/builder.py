"""Builds images: one layer after the other, each from the message of the client."""

from __future__ import annotations

import asyncio
import posixpath
import re
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from modal_emulator.builds.pythons import HOST_VERSION, client_packages, find_python
from modal_emulator.builds.steps import (
    LayerBuild,
    Log,
    StepError,
    installer_variables,
    instructions,
)
from modal_emulator.containers.launch import container_environment
from modal_emulator.containers.sandbox import Sandbox, SandboxMode
from modal_emulator.objects.images import BuildError, ImageRecord, env_of
from modal_emulator.objects.layers import Layer, LayerStore
from modal_emulator.objects.mounts import MountService
from modal_emulator.objects.secrets import SecretService
from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.storage.ids import new_id
from modal_emulator.volumes.store import VolumeStore

_SHIMS = Path(__file__).parent / "shims"
_PYTHON_IN_NAME = re.compile(r"\b(3\.\d+)")
# what the client puts into every base layer: the system that this machine has instead
_OF_THE_BASE = {
    "apt-get update",
    "apt-get install -y gcc gfortran build-essential",
    "echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
    "ln -s /usr/local/bin/python3 /usr/local/bin/python",
}
_READ_ONLY = "Read-only file system"
_EXTENDABLE = (
    "/home",
    "/mnt",
    "/opt",
    "/srv",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/share",
    "/var",
)
_WHERE_TO_WRITE = (
    "Commands of an image can write to /root, /tmp and the environment, and create files in "
    "/home, /mnt, /opt, /srv, /usr/local and /var.\n"
)
_INSTALLERS = "pip install --upgrade pip wheel uv"

# run the function of `Image.run_function` in a container whose layer it may change
RunFunction = Callable[[str, Any, Layer, Log], Awaitable[None]]


class ImageBuilder:
    """Builds the layers that are not cached yet."""

    def __init__(
        self,
        store: LayerStore,
        mounts: MountService,
        secrets: SecretService,
        volumes: VolumeStore,
        *,
        uv: str,
        scratch: Path,
        hidden: list[Path],
        sandbox_mode: SandboxMode | None,
        run_function: RunFunction,
    ) -> None:
        self.store = store
        self._mounts = mounts
        self._secrets = secrets
        self._volumes = volumes
        self._uv = uv
        self._scratch = scratch
        self._hidden = hidden
        self._sandbox_mode = sandbox_mode
        self._run_function = run_function

    async def build(self, image_id: str, request: Any, base: ImageRecord, log: Log) -> Layer:
        """Build a layer on that of its base image.

        Raises:
            BuildError: If a step fails.
        """
        base_layer = self.store.get(base.image_id) if base.image_id else None
        if base.image_id and base_layer is None:
            raise BuildError(f"The base image {base.image_id} is not built.")
        folder = await asyncio.to_thread(self.store.begin, base_layer)
        try:
            layer = await self._apply(request, base, base_layer, folder, log)
            anew = request.force_build or request.ignore_cache
            finish = partial(self.store.finish, replace=anew)
            return await asyncio.to_thread(finish, image_id, layer)
        except (StepError, OSError) as e:
            log(f"{e}\n")
            raise BuildError(str(e)) from e
        finally:
            await asyncio.to_thread(self.store.drop, folder)

    async def _apply(
        self, request: Any, base: ImageRecord, base_layer: Layer | None, folder: Path, log: Log
    ) -> Layer:
        layer = await asyncio.to_thread(
            self._apply_commands, request, base, base_layer, folder, log
        )
        if request.image.HasField("build_function"):
            build_function = request.image.build_function
            log(f"=> RUN function {request.build_function_id}\n")
            await self._run_function(request.build_function_id, build_function.input, layer, log)
        return layer

    def _apply_commands(
        self, request: Any, base: ImageRecord, base_layer: Layer | None, folder: Path, log: Log
    ) -> Layer:
        context = self._scratch / new_id("context")
        try:
            self._write_context(request.image, context)
            build = LayerBuild(
                folder,
                uv=self._uv,
                log=log,
                run_in_sandbox=lambda *_: 0,
                context=context,
                env=dict(base.env),
                secrets=self._secrets.environment(request.image.secret_ids),
                workdir=base.workdir or "/",
            )
            layer = base_layer and replace(base_layer, folder=folder)
            for keyword, rest in instructions(list(request.image.dockerfile_commands)):
                if keyword == "FROM" and rest != "base":
                    layer = self._base_layer(rest, request.image, build)
                assert layer is not None, "the client begins each base image with FROM"
                build.run_in_sandbox = partial(self._run_in_sandbox, layer, log)
                self._apply_one(keyword, rest, build)
            assert layer is not None, "an image without commands has a base image"
            return replace(layer, warnings=(*layer.warnings, *build.warnings))
        finally:
            if context.exists():
                delete_tree(context)

    def _write_context(self, image: Any, context: Path) -> None:
        context.mkdir(parents=True)
        if image.context_mount_id:
            self._mounts.copy_files([image.context_mount_id], context)
        for file in image.context_files:
            target = context / file.filename.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)

    def _apply_one(self, keyword: str, rest: str, build: LayerBuild) -> None:
        if keyword == "RUN" and rest not in _OF_THE_BASE:
            if rest == _INSTALLERS:
                self._install_installers(build)
            else:
                build.run(rest)
        elif keyword == "COPY" and not rest.startswith("/python/"):
            build.copy(rest)
        elif keyword == "ENV":
            build.env.update(env_of(f"ENV {rest}", build.env))
        elif keyword == "WORKDIR":
            build.workdir = posixpath.join(build.workdir, rest)
            build.inside(".").mkdir(parents=True, exist_ok=True)

    def _install_installers(self, build: LayerBuild) -> None:
        try:
            build.run("pip install pip wheel")
        except StepError:
            build.warnings.append("pip and wheel, which could not be downloaded")

    def _base_layer(self, name: str, image: Any, build: LayerBuild) -> Layer:
        """Create the Python environment of an image that begins with `FROM name`."""
        mount_name = self._mounts.global_names.get(image.context_mount_id, "")
        found = re.match(r"python:(3\.\d+)", name) or _PYTHON_IN_NAME.search(mount_name)
        version = found[1] if found else HOST_VERSION
        if not name.startswith("python:"):
            build.warnings.append(f"the system of {name}, of which only a Python is there")
        python = find_python(version, self._uv)
        if python is None:
            build.warnings.append(f"Python {version}; it has {HOST_VERSION}, as this machine has")
            version = HOST_VERSION
            python = find_python(version, self._uv)
            assert python is not None
        build.log(f"=> FROM {name}: Python {version} of {python}\n")
        environment = build.folder / "env"
        command = [self._uv, "venv", "--quiet", "--relocatable", "--python", python]
        done = subprocess.run([*command, str(environment)], capture_output=True, text=True)
        if done.returncode:
            raise StepError(f"The environment could not be created: {done.stderr}")
        client = client_packages(self.store.folder / "clients", python, version, self._uv)
        full = _full_version(python)
        return Layer(build.folder, python_version=full, base_python=python, client=str(client))

    def _run_in_sandbox(
        self, layer: Layer, log: Log, command: str, variables: Mapping[str, str], workdir: str
    ) -> int:
        sandbox = Sandbox.prepare(
            self._scratch / new_id("build"),
            mounts=self._mounts,
            mount_ids=[],
            volumes=self._volumes,
            volume_mounts=[],
            files=layer.files,
            working_folder=workdir,
            visible=[*layer.visible[1:], _SHIMS],
            writable=[layer.env],
            extendable=_EXTENDABLE,
            hidden=self._hidden,
            # what is written there could not be kept
            writable_folders=False,
            mode=self._sandbox_mode,
        )
        try:
            record = ImageRecord(image_id="", env=dict(variables))
            env = container_environment(record, {}, installer_variables(), "/root", layer)
            env["PATH"] = f"{_SHIMS}:{env['PATH']}"
            process = subprocess.Popen(
                sandbox.argv(["/bin/sh", "-c", command]),
                cwd="/",
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            assert process.stdout is not None
            with process:
                for line in process.stdout:
                    log(line)
                    if _READ_ONLY in line:
                        log(_WHERE_TO_WRITE)
            sandbox.keep_files(layer.files)
            return process.returncode
        finally:
            sandbox.close()


def _full_version(python: str) -> str:
    command = [python, "-I", "-S", "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
