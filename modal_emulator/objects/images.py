"""Images: checked, recorded and, where that is possible, built."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.dockerfile import DockerfileError, Step
from modal_emulator.objects.environments import IMAGE_BUILDER_VERSION
from modal_emulator.objects.image_records import (
    ImageRecord,
    describe_image,
    steps_of,
    without_effect,
)
from modal_emulator.objects.layers import Layer, LayerStore
from modal_emulator.rpc.caller import warn_client
from modal_emulator.rpc.faults import Faults
from modal_emulator.rpc.gpus import UnknownGpuError
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.protocol_fields import refuse, warnings
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.ids import content_id
from modal_emulator.storage.state import State

log = logging.getLogger(__name__)

_LINES_IN_ERROR = 30
# the deadline of the client is 55 s
_MAX_POLL_S = 50.0


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

    def __init__(self, state: State, faults: Faults, global_mounts: Mapping[str, str]) -> None:
        self._state = state
        self._faults = faults
        self._global_mounts = global_mounts
        # None: images are recorded only
        self.builder: Builder | None = None
        self._builds: dict[str, Build] = {}
        self._records: dict[str, ImageRecord] = {}
        requests = {
            image_id: api_pb2.ImageGetOrCreateRequest.FromString(data)
            for image_id, data in state.objects("image")
        }
        for image_id in bases_first(requests):
            self._read(image_id, requests[image_id])

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

    def python_version(self, image_id: str) -> str:
        """Return the minor version that an image asks for, such as 3.11; empty if it names none."""
        record, layer = self._records.get(image_id), self.builder and self.layer(image_id)
        if record is not None and record.python_version:
            return record.python_version
        return layer.python_version.rpartition(".")[0] if layer else ""

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

    def _read(self, image_id: str, request: Any) -> None:
        base, image = self._base_of(request), request.image
        try:
            steps = steps_of(image, base)
        except DockerfileError:  # an earlier version has accepted it
            steps = []
        self._records[image_id] = self._describe(image_id, request, base, steps)

    def _describe(
        self, image_id: str, request: Any, base: ImageRecord, steps: Sequence[Step]
    ) -> ImageRecord:
        mount_name = self._global_mounts.get(request.image.context_mount_id, "")
        return describe_image(image_id, request, base, steps, mount_name)

    def _base_of(self, request: Any) -> ImageRecord:
        ids = [base.image_id for base in request.image.base_images]
        return self.get(ids[0]) if ids else ImageRecord(image_id="")

    def _metadata(self, layer: Layer | None) -> api_pb2.ImageMetadata:
        version = layer.python_version if layer else platform.python_version()
        return api_pb2.ImageMetadata(
            image_builder_version=IMAGE_BUILDER_VERSION, python_version_info=f"Python {version}"
        )

    async def ImageGetOrCreate(self, request: Message) -> Message:
        refuse("The image", [request.image])
        image_id = content_id("im", request.image.SerializeToString(deterministic=True))
        if self._faults.image_build_error is not None:
            result = _failure(self._faults.image_build_error)
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=result)
        base = self._base_of(request)
        try:
            steps = steps_of(request.image, base)
            record = self._describe(image_id, request, base, steps)
        except UnknownGpuError as e:
            raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e
        except DockerfileError as e:
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=_failure(str(e)))
        recorded = warnings([request.image])
        recorded += without_effect(request.image, steps, built=self.builder is not None)
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

        try:
            await builder.build(image_id, request, self._base_of(request), log_line)
            build.result = _SUCCESS
        except BuildError as e:
            log.info("image %s: %s", image_id, e)
            await asyncio.sleep(0)  # for the last lines of the log
            build.result = _failure("".join(build.lines[-_LINES_IN_ERROR:]))
        except Exception as e:
            # without a result, the client would wait for ever
            log.exception("image %s", image_id)
            build.result = _failure(
                f"The emulator failed to build the image: {type(e).__name__}: {e}. "
                "This is an error in the emulator, not in your app; "
                "the traceback is in the emulator's log."
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


def _failure(message: str) -> Message:
    return api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=message
    )
