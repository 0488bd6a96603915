"""Builds images: one layer after the other, each from the message of the client."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
)
from modal_emulator.containers.launch import container_environment
from modal_emulator.containers.sandbox import Sandbox, SandboxMode
from modal_emulator.objects.dockerfile import Step
from modal_emulator.objects.image_records import (
    COMMANDS_OF_THE_BASE,
    ImageRecord,
    adds_python,
    has_python,
    python_of,
    python_of_mount,
    steps_of,
)
from modal_emulator.objects.images import BuildError
from modal_emulator.objects.layers import Layer, LayerStore
from modal_emulator.objects.mounts import MountService
from modal_emulator.objects.secrets import SecretService
from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.storage.ids import new_id
from modal_emulator.volumes.store import VolumeStore

_SHIMS = Path(__file__).parent / "shims"
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
        folders: list[Path] = []
        try:
            layer = await self._apply(request, base, base_layer, folders, log)
            anew = request.force_build or request.ignore_cache
            finish = partial(self.store.finish, replace=anew)
            return await asyncio.to_thread(finish, image_id, layer)
        except (StepError, OSError) as e:
            log(f"{e}\n")
            raise BuildError(str(e)) from e
        finally:
            for folder in folders:
                await asyncio.to_thread(self.store.drop, folder)

    async def _apply(
        self,
        request: Any,
        base: ImageRecord,
        base_layer: Layer | None,
        folders: list[Path],
        log: Log,
    ) -> Layer:
        steps = steps_of(request.image, base)
        layer = await asyncio.to_thread(
            self._apply_steps, request.image, steps, base_layer, folders, log
        )
        if request.image.HasField("build_function"):
            build_function = request.image.build_function
            log(f"=> RUN function {request.build_function_id}\n")
            await self._run_function(request.build_function_id, build_function.input, layer, log)
        return layer

    def _apply_steps(
        self,
        image: Any,
        steps: Sequence[Step],
        base_layer: Layer | None,
        folders: list[Path],
        log: Log,
    ) -> Layer:
        """Return the layer of the last stage; `folders` gets those of all."""
        if base_layer is not None and not steps:
            folders.append(self.store.begin(base_layer))
            return replace(base_layer, folder=folders[0])
        context = self._scratch / new_id("context")
        stages: dict[str, LayerBuild] = {}
        try:
            self._write_context(image, context)
            build = LayerBuild(
                Layer(context, "", "", ""),
                uv=self._uv,
                log=log,
                run_in_sandbox=lambda *_: 0,
                context=context,
                stages=stages,
                secrets=self._secrets.environment(image.secret_ids),
                warnings=[],
            )
            for step in steps:
                if step.keyword == "FROM":
                    number = str(len(folders))
                    layer = self._begin_stage(step, image, base_layer, folders, build)
                    build = replace(build, layer=layer)
                    names = [number, *(alias.lower() for alias in step.words[2:])]
                    stages |= dict.fromkeys(names, build)
                build.run_in_sandbox = partial(self._run_in_sandbox, build.layer, log)
                self._apply_one(step, image, build)
            return replace(build.layer, warnings=(*build.layer.warnings, *build.warnings))
        finally:
            if context.exists():
                delete_tree(context)

    def _begin_stage(
        self,
        step: Step,
        image: Any,
        base_layer: Layer | None,
        folders: list[Path],
        build: LayerBuild,
    ) -> Layer:
        name = step.words[0]
        if name.lower() in build.stages:
            source: Layer | None = build.stages[name.lower()].layer
        else:
            source = base_layer if name == "base" else None
        folders.append(self.store.begin(source))
        if source is not None:
            return replace(source, folder=folders[-1])
        mount_name = self._mounts.global_names.get(image.context_mount_id, "")
        version = python_of(name) or python_of_mount(mount_name)
        if not has_python(name):
            build.warnings.append(f"the system of {name}, of which only a Python is there")
        build.log(f"=> {step.instruction}\n")
        return self._make_python(version or HOST_VERSION, folders[-1], build)

    def _write_context(self, image: Any, context: Path) -> None:
        context.mkdir(parents=True)
        if image.context_mount_id:
            self._mounts.copy_files([image.context_mount_id], context)
        for file in image.context_files:
            target = context / file.filename.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)

    def _apply_one(self, step: Step, image: Any, build: LayerBuild) -> None:
        build.workdir = step.settings.workdir or "/"
        if step.keyword == "RUN" and step.script not in COMMANDS_OF_THE_BASE:
            if step.script == _INSTALLERS:
                self._install_installers(step, build)
            else:
                build.run(step)
        elif adds_python(step):
            self._add_python(image, build)
        elif step.keyword in {"COPY", "ADD"}:
            build.copy(step)
        elif step.keyword == "WORKDIR":
            build.inside(".").mkdir(parents=True, exist_ok=True)

    def _install_installers(self, step: Step, build: LayerBuild) -> None:
        # this machine has uv
        plain = replace(step.instruction, rest="pip install pip wheel")
        try:
            build.run(replace(step, instruction=plain))
        except StepError:
            build.warnings.append("pip and wheel, which could not be downloaded")

    def _add_python(self, image: Any, build: LayerBuild) -> None:
        """Give the layer the Python of `add_python`, where its own is another."""
        mount_name = self._mounts.global_names.get(image.context_mount_id, "")
        version = python_of_mount(mount_name)
        if version and not build.layer.python_version.startswith(f"{version}."):
            delete_tree(build.layer.env)
            made = self._make_python(version, build.layer.folder, build)
            build.layer = replace(made, warnings=build.layer.warnings)

    def _make_python(self, version: str, folder: Path, build: LayerBuild) -> Layer:
        """Create the Python environment of a layer."""
        python = find_python(version, self._uv)
        if python is None:
            build.warnings.append(f"Python {version}; it has {HOST_VERSION}, as this machine has")
            version = HOST_VERSION
            python = find_python(version, self._uv)
            assert python is not None
        build.log(f"=> Python {version} of {python}\n")
        environment = folder / "env"
        command = [self._uv, "venv", "--quiet", "--relocatable", "--python", python]
        done = subprocess.run([*command, str(environment)], capture_output=True, text=True)
        if done.returncode:
            raise StepError(f"The environment could not be created: {done.stderr}")
        client = client_packages(self.store.folder / "clients", python, version, self._uv)
        full = _full_version(python)
        return Layer(folder, python_version=full, base_python=python, client=str(client))

    def _run_in_sandbox(
        self, layer: Layer, log: Log, argv: list[str], variables: Mapping[str, str], workdir: str
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
                sandbox.argv(["/bin/sh", "-c", 'exec "$0" "$@"', *argv]),
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
