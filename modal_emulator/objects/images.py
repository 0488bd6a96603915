"""Images: checked, recorded and, where that is possible, built."""

from __future__ import annotations

import asyncio
import logging
import platform
import posixpath
import re
import shlex
import string
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Protocol

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.environments import IMAGE_BUILDER_VERSION
from modal_emulator.objects.layers import Layer, LayerStore
from modal_emulator.rpc.caller import warn_client
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.gpus import UnknownGpuError, requested_gpu
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.protocol_fields import refuse, warnings
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import content_id
from modal_emulator.storage.state import State

log = logging.getLogger(__name__)

_LINES_IN_ERROR = 30
# the deadline of the client is 55 s
_MAX_POLL_S = 50.0
_INSTALL = re.compile(r"(?:pip3?|uv) (?:pip )?install\b")
_OPTIONS_WITH_VALUE = {
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-c", "--constraint",
    "--python", "-p", "--torch-backend", "--index-strategy", "--target", "-t", "--prefix",
}  # fmt: skip
_REQUIREMENTS_OPTIONS = {"-r", "--requirement", "--requirements"}


# a missing package is an ImportError, so its installation needs no warning
_INSTALLS_PACKAGES = re.compile(r"\b(?:pip3? install|uv|apt-get|poetry|micromamba)\b")
_MAX_COMMAND_CHARS = 60


class BuildError(Exception):
    """Raised when an image can't be built."""


class Builder(Protocol):
    """Builds the layers of images."""

    store: LayerStore

    async def build(
        self, image_id: str, request: Any, base: ImageRecord, log: Callable[[str], None], /
    ) -> Layer:
        """Build a layer on that of its base image.

        Raises:
            BuildError: If a step fails.
        """


@dataclass(frozen=True)
class BuildFunction:
    """A function of `Image.run_function`, which Modal runs during the build."""

    function_id: str
    definition: str


@dataclass(frozen=True)
class ImageRecord:
    """An image as the client describes it, including its base images."""

    image_id: str
    commands: tuple[str, ...] = ()
    base: str = ""
    python_version: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    packages: tuple[str, ...] = ()
    apt_packages: tuple[str, ...] = ()
    context_files: dict[str, str] = field(default_factory=dict)
    copied_mount_ids: tuple[str, ...] = ()
    build_functions: tuple[BuildFunction, ...] = ()
    gpu: str | None = None
    secret_ids: tuple[str, ...] = ()


def _words(command: str) -> list[str]:
    """Split as a shell does, or at the spaces if a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _expand(value: str, env: dict[str, str]) -> str:
    return string.Template(value).safe_substitute({"PATH": "$PATH", **env})


def env_of(command: str, env: dict[str, str]) -> dict[str, str]:
    """Parse `ENV A=1 B='x y'` and the old `ENV A 1`."""
    assignments = command[len("ENV ") :].strip()
    name, _, rest = assignments.partition(" ")
    if "=" not in name:
        return {name: _expand(rest.strip(), env)}
    found = {}
    # as in a Dockerfile, single quotes keep $NAME as it is
    literal = "'" in assignments
    for word in _words(assignments):
        key, _, value = word.partition("=")
        found[key] = value if literal else _expand(value, env)
    return found


def _packages_of(command: str, files: dict[str, str]) -> list[str]:
    """Return the requirements of a `RUN … pip install …`, those in requirements files included.

    Args:
        command: The command.
        files: Path in the image -> content, for each file that was copied into the image.
    """
    packages = []
    # the value of $(…) is known only when an image is built, and is never a package
    for part in re.split(r"&&|;", re.sub(r"\$\([^)]*\)", "$", command.removeprefix("RUN "))):
        if not _INSTALL.search(part):
            continue
        words = iter(_words(part[part.index("install") + len("install") :]))
        for word in words:
            if word in _OPTIONS_WITH_VALUE:
                next(words, None)
            elif word in _REQUIREMENTS_OPTIONS:
                packages += _requirements_in(files.get(next(words, ""), ""))
            elif not word.startswith("-"):
                packages.append(word)
    return packages


def _requirements_in(content: str) -> list[str]:
    """Return the requirements of a requirements file, without its options and comments."""
    lines = (re.split(r"(?:^|\s)#", line)[0].strip() for line in content.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def apt_packages_of(command: str) -> list[str]:
    """Return what a `RUN … apt-get install …` installs."""
    packages = []
    for part in re.split(r"&&|;", command.removeprefix("RUN ")):
        words = _words(part)
        if words[:1] == ["apt-get"] and "install" in words:
            after = words[words.index("install") + 1 :]
            packages += [word for word in after if not word.startswith("-")]
    return packages


def describe_image(
    image_id: str, image: Any, bases: list[ImageRecord], build_function_id: str
) -> ImageRecord:
    """Return the record of an `Image` message, which its base images are part of."""
    first = bases[0] if bases else ImageRecord(image_id="")
    env, workdir, base = dict(first.env), first.workdir, first.base
    python_version = first.python_version
    packages, apt_packages = list(first.packages), list(first.apt_packages)
    copied = list(first.copied_mount_ids)
    files = {f.filename: f.data.decode(errors="replace") for f in image.context_files}
    files_inside: dict[str, str] = {}
    for command in image.dockerfile_commands:
        keyword, _, rest = command.strip().partition(" ")
        if keyword == "FROM" and rest != "base":
            base = rest
            if match := re.match(r"python:(\d+\.\d+)", rest):
                python_version = match.group(1)
        elif keyword == "ENV":
            env.update(env_of(command.strip(), env))
        elif keyword == "WORKDIR":
            workdir = posixpath.join(workdir or "/", rest.strip())
        elif keyword == "COPY" and image.context_mount_id and rest.strip() == ". /":
            copied.append(image.context_mount_id)
        elif keyword == "COPY" and rest.partition(" ")[0] in files:
            source, _, target = rest.partition(" ")
            files_inside[target.strip()] = files[source]
        elif keyword == "RUN":
            packages += _packages_of(command, files_inside)
            apt_packages += apt_packages_of(command)
    built = list(first.build_functions)
    if image.HasField("build_function"):
        built.append(BuildFunction(build_function_id, image.build_function.definition))
    gpu = requested_gpu(image.gpu_config)
    return ImageRecord(
        image_id=image_id,
        commands=first.commands + tuple(image.dockerfile_commands),
        base=base,
        python_version=python_version,
        env=env,
        workdir=workdir,
        packages=tuple(packages),
        apt_packages=tuple(apt_packages),
        context_files={**first.context_files, **files},
        copied_mount_ids=tuple(copied),
        build_functions=tuple(built),
        gpu=str(gpu) if gpu else first.gpu,
        secret_ids=first.secret_ids + tuple(image.secret_ids),
    )


def steps_not_run(image: Any) -> list[str]:
    """Return the steps of a layer that do more than install packages, where nothing is built.

    Those of Modal's own base images are left out.
    """
    found = ["`Image.run_function`"] if image.HasField("build_function") else []
    if "FROM base" not in image.dockerfile_commands:
        return found
    for command in image.dockerfile_commands:
        keyword, _, rest = command.strip().partition(" ")
        runs = keyword == "RUN" and not _INSTALLS_PACKAGES.search(rest)
        if runs or (keyword in {"ENTRYPOINT", "ADD", "USER"} and rest.strip() != "[]"):
            found.append(f"`{shorten(command.strip(), _MAX_COMMAND_CHARS, placeholder=' …')}`")
    return found


def bases_first(requests: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of images, each after its base images.

    In state folders of earlier versions, an image can be stored after those that are based on it.
    """
    placed: set[str] = set()
    for image_id in requests:
        # no recursion, because chains of layers are long
        above = [image_id]
        while above:
            missing = [
                base.image_id
                for base in requests[above[-1]].image.base_images
                if base.image_id in requests and base.image_id not in placed
            ]
            if missing:
                above.append(missing[0])
                continue
            placed_id = above.pop()
            if placed_id not in placed:
                placed.add(placed_id)
                yield placed_id


@dataclass
class Build:
    """A build that goes on or has failed, with its log."""

    lines: list[str] = field(default_factory=list)
    changed: Notifier = field(default_factory=Notifier)
    result: Any = None
    task: asyncio.Task[None] | None = None


class ImageService:
    """Answers the Image* RPCs."""

    def __init__(self, state: State, faults: Faults) -> None:
        self._state = state
        self._faults = faults
        # None: images are recorded only
        self.builder: Builder | None = None
        self._builds: dict[str, Build] = {}
        self._records: dict[str, ImageRecord] = {}
        requests = {
            image_id: api_pb2.ImageGetOrCreateRequest.FromString(data)
            for image_id, data in state.objects("image")
        }
        for image_id in bases_first(requests):
            self._records[image_id] = self._describe(image_id, requests[image_id])

    def layer(self, image_id: str) -> Layer | None:
        """Return the layer of an image; None if images are recorded only.

        Raises:
            GRPCError: If it was deleted from the cache (FAILED_PRECONDITION).
        """
        if self.builder is None or not image_id:
            return None
        found = self.builder.store.get(image_id)
        if found is None:
            message = f"Image '{image_id}' is not built on this machine; deploy the app again."
            raise GRPCError(Status.FAILED_PRECONDITION, message)
        return found

    def warnings(self, image_id: str) -> tuple[str, ...]:
        """Return what an image asks for that its containers don't have."""
        if self.builder is None or not image_id:
            return ()
        layer = self.builder.store.get(image_id)
        return layer.warnings if layer else ()

    def all(self) -> list[ImageRecord]:
        """Return every image, oldest first."""
        return list(self._records.values())

    def get(self, image_id: str) -> ImageRecord:
        """Return an image.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        if image_id not in self._records:
            raise GRPCError(Status.NOT_FOUND, f"Image '{image_id}' not found")
        return self._records[image_id]

    def require(self, image_id: str) -> None:
        """Refuse an unknown image with NOT_FOUND."""
        self.get(image_id)

    def _describe(self, image_id: str, request: Any) -> ImageRecord:
        bases = [self.get(base.image_id) for base in request.image.base_images]
        return describe_image(image_id, request.image, bases, request.build_function_id)

    def _metadata(self, layer: Layer | None) -> api_pb2.ImageMetadata:
        version = layer.python_version if layer else platform.python_version()
        return api_pb2.ImageMetadata(
            image_builder_version=IMAGE_BUILDER_VERSION, python_version_info=f"Python {version}"
        )

    async def ImageGetOrCreate(self, request: Message) -> Message:
        refuse("The image", [request.image])
        image_id = content_id("im", request.image.SerializeToString(deterministic=True))
        if self._faults.image_build_error is not None:
            result = api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE,
                exception=self._faults.image_build_error,
            )
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=result)
        try:
            record = self._describe(image_id, request)
        except UnknownGpuError as e:
            raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e
        recorded = warnings([request.image])
        if self.builder is None:
            recorded += steps_not_run(request.image)
        for option in recorded:
            warn_client(f"The emulator records {option} of an image but it has no effect here.")
        self._records[image_id] = record
        self._state.put("image", image_id, request.SerializeToString())
        layer = self.builder.store.get(image_id) if self.builder else None
        anew = request.force_build or request.ignore_cache
        if self.builder and (layer is None or anew):
            self._start_build(image_id, request, self.builder)
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id)
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=_SUCCESS, metadata=self._metadata(layer)
        )

    def _start_build(self, image_id: str, request: Message, builder: Builder) -> None:
        build = self._builds.get(image_id)
        if build is None or build.result is not None:
            build = self._builds[image_id] = Build()
            build.task = asyncio.create_task(self._build(image_id, request, builder, build))

    async def _build(self, image_id: str, request: Message, builder: Builder, build: Build) -> None:
        loop = asyncio.get_running_loop()

        def add(line: str) -> None:
            build.lines.append(line)
            build.changed.notify()

        def log_line(line: str) -> None:
            loop.call_soon_threadsafe(add, line)  # steps run in other threads

        bases = [self.get(base.image_id) for base in request.image.base_images]
        base = bases[0] if bases else ImageRecord(image_id="")
        try:
            await builder.build(image_id, request, base, log_line)
            build.result = _SUCCESS
        except BuildError as e:
            log.info("image %s: %s", image_id, e)
            await asyncio.sleep(0)  # for the last lines of the log
            tail = "".join(build.lines[-_LINES_IN_ERROR:])
            build.result = api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=tail
            )
        build.changed.notify()

    async def close(self) -> None:
        """Wait for the end of the builds."""
        tasks = [build.task for build in self._builds.values() if build.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ImageFromId(self, request: Message) -> Message:
        record = self.get(request.image_id)
        metadata = self._metadata(self.layer(record.image_id))
        return api_pb2.ImageFromIdResponse(image_id=record.image_id, metadata=metadata)

    async def ImageJoinStreaming(self, request: Message) -> AsyncIterator[Message]:
        """Yield the log of a build, and then its result."""
        self.get(request.image_id)
        build = self._builds.get(request.image_id)
        sent = int(request.last_entry_id or 0)
        ends_at = time.monotonic() + min(request.timeout, _MAX_POLL_S)
        while build is not None:
            done = build.result is not None
            new = build.lines[sent:]
            sent += len(new)
            if new:
                entry = api_pb2.TaskLogs(data="".join(new), timestamp=time.time())
                yield api_pb2.ImageJoinStreamingResponse(task_logs=[entry], entry_id=str(sent))
            if done:
                break
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return
            if sent == len(build.lines):
                await build.changed.wait(left_s)
        result = build.result if build is not None else _SUCCESS
        layer = self.layer(request.image_id) if result == _SUCCESS else None
        yield api_pb2.ImageJoinStreamingResponse(
            result=result, eof=True, metadata=self._metadata(layer)
        )


_SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
