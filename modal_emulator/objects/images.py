"""Images: checked and recorded, not built; containers run in this Python environment."""

from __future__ import annotations

import platform
import re
import shlex
import string
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.environments import IMAGE_BUILDER_VERSION
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.gpus import UnknownGpuError, requested_gpu
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import content_id
from modal_emulator.storage.state import State

_INSTALL = re.compile(r"(?:pip3?|uv) (?:pip )?install\b")
_OPTIONS_WITH_VALUE = {
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-c", "--constraint",
    "--python", "-p", "--torch-backend", "--index-strategy", "--target", "-t", "--prefix",
}  # fmt: skip
_REQUIREMENTS_OPTIONS = {"-r", "--requirement", "--requirements"}


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


def _env_of(command: str, env: dict[str, str]) -> dict[str, str]:
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


def _apt_packages_of(command: str) -> list[str]:
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
            env.update(_env_of(command.strip(), env))
        elif keyword == "WORKDIR":
            workdir = rest.strip()
        elif keyword == "COPY" and image.context_mount_id and rest.strip() == ". /":
            copied.append(image.context_mount_id)
        elif keyword == "COPY" and rest.partition(" ")[0] in files:
            source, _, target = rest.partition(" ")
            files_inside[target.strip()] = files[source]
        elif keyword == "RUN":
            packages += _packages_of(command, files_inside)
            apt_packages += _apt_packages_of(command)
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


class ImageService:
    """Answers the Image* RPCs."""

    def __init__(self, state: State, faults: Faults) -> None:
        self._state = state
        self._faults = faults
        self._records: dict[str, ImageRecord] = {}
        requests = {
            image_id: api_pb2.ImageGetOrCreateRequest.FromString(data)
            for image_id, data in state.objects("image")
        }
        for image_id in bases_first(requests):
            self._records[image_id] = self._describe(image_id, requests[image_id])

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

    def _metadata(self) -> api_pb2.ImageMetadata:
        return api_pb2.ImageMetadata(
            image_builder_version=IMAGE_BUILDER_VERSION,
            python_version_info=f"Python {platform.python_version()}",
        )

    async def ImageGetOrCreate(self, request: Message) -> Message:
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
        self._records[image_id] = record
        self._state.put("image", image_id, request.SerializeToString())
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=_SUCCESS, metadata=self._metadata()
        )

    async def ImageFromId(self, request: Message) -> Message:
        record = self.get(request.image_id)
        return api_pb2.ImageFromIdResponse(image_id=record.image_id, metadata=self._metadata())

    async def ImageJoinStreaming(self, request: Message) -> AsyncIterator[Message]:
        self.get(request.image_id)
        metadata = self._metadata()
        yield api_pb2.ImageJoinStreamingResponse(result=_SUCCESS, eof=True, metadata=metadata)


_SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
