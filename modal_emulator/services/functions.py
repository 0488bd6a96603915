"""Answers the RPCs that define, parametrize and look up functions and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.function_checks import (
    check_gpu,
    check_placement,
    check_requests,
    check_schedule,
    check_timeout,
)
from modal_emulator.apps.function_options import apply_options
from modal_emulator.apps.functions import FunctionRecord, Functions
from modal_emulator.objects.images import ImageService
from modal_emulator.rpc.caller import current_caller, warn_client
from modal_emulator.rpc.protocol_fields import refusals, refuse, warnings
from modal_emulator.rpc.rpc import Message
from modal_emulator.services.web_endpoints import WebEndpoints
from modal_emulator.storage.ids import new_id


class Objects(Protocol):
    """Objects that a function refers to by id."""

    def require(self, object_id: str, /) -> None:
        """Check that there is such an object.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """


def handle_of(source: Any, app_id: str) -> Any:
    """Return the handle of a `FunctionPrecreateRequest` or of a `Function` message."""
    handle = api_pb2.FunctionHandleMetadata(
        app_id=app_id,
        function_name=source.function_name,
        function_type=source.function_type,
        supported_input_formats=source.supported_input_formats,
        supported_output_formats=source.supported_output_formats,
    )
    if source.HasField("function_schema"):
        handle.function_schema.CopyFrom(source.function_schema)
    if isinstance(source, api_pb2.Function):
        handle.is_method = source.is_method
        handle.class_parameter_info.CopyFrom(source.class_parameter_info)
    _add_methods(handle, app_id, source.method_definitions)
    return handle


def _add_methods(handle: Any, app_id: str, definitions: Any) -> None:
    for name, method in definitions.items():
        entry = handle.method_handle_metadata[name]
        entry.CopyFrom(
            api_pb2.FunctionHandleMetadata(
                app_id=app_id,
                function_name=method.function_name,
                function_type=method.function_type,
                is_method=True,
                use_method_name=name,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
            )
        )
        if method.HasField("function_schema"):
            entry.function_schema.CopyFrom(method.function_schema)


def _single_rank(function: Any) -> Any:
    """Return a `FunctionData` for a function that accepts one GPU type."""
    data = api_pb2.FunctionData()
    shared = {field.name for field in data.DESCRIPTOR.fields}
    for field, value in function.ListFields():
        if field.name not in shared:
            continue
        if hasattr(value, "MergeFrom"):
            getattr(data, field.name).MergeFrom(value)
        else:
            setattr(data, field.name, value)
    data.ranked_functions.add(rank=0).function.CopyFrom(function)
    return data


class FunctionService:
    """Answers Function{Precreate,Create,BindParams,Get…} and Class{Create,Get}."""

    def __init__(
        self,
        functions: Functions,
        apps: Apps,
        *,
        images: ImageService,
        mounts: Objects,
        secrets: Objects,
        volumes: Objects,
        on_settings: Callable[[str], None],
        web: WebEndpoints,
    ) -> None:
        self._functions = functions
        self._apps = apps
        self._dependencies = (
            ("secret_ids", secrets),
            ("mount_ids", mounts),
        )
        self._images = images
        self._volumes = volumes
        self._on_settings = on_settings
        self._web = web

    async def FunctionPrecreate(self, request: Message) -> Message:
        self._apps.get(request.app_id)
        record = self._functions.reserve(
            request.app_id, request.existing_function_id, request.function_name
        )
        handle = handle_of(request, request.app_id)
        await self._web.open(record.function_id, request)
        self._functions.add_urls(handle, record.function_id)
        return api_pb2.FunctionPrecreateResponse(
            function_id=record.function_id, handle_metadata=handle
        )

    async def FunctionCreate(self, request: Message) -> Message:
        self._apps.get(request.app_id)
        data = (
            request.function_data
            if request.HasField("function_data")
            else _single_rank(request.function)
        )
        for ranked in data.ranked_functions:
            self._check(ranked.function)
        first = data.ranked_functions[0].function
        record = self._functions.reserve(
            request.app_id, request.existing_function_id, first.function_name
        )
        handle = handle_of(first, request.app_id)
        self._functions.define(record, data, handle)
        await self._web.open(record.function_id, first)
        self._functions.add_urls(handle, record.function_id)
        created = api_pb2.Function()
        created.CopyFrom(first)
        created.web_url = handle.web_url
        for name, method in created.method_definitions.items():
            method.web_url = handle.method_handle_metadata[name].web_url
        self._warn(first.function_name, [request])
        for what in self._images.warnings(first.image_id):
            warn_client(f"The image of {first.function_name} is built without {what}.")
        self._warn_of_python(first)
        return api_pb2.FunctionCreateResponse(
            function_id=record.function_id,
            function=created,
            function_data=data,
            handle_metadata=handle,
        )

    def _warn(self, name: str, messages: list[Any]) -> None:
        """Warn the client of what a function asks for and doesn't get here."""
        for option in warnings(messages):
            warn_client(f"The emulator records {option} of {name} but it has no effect here.")
        for option in refusals(messages):
            warn_client(
                f"{name} uses {option}, which the emulator does not emulate, "
                "so calls of it are refused."
            )

    def _warn_of_python(self, function: Any) -> None:
        """Warn of a serialized function that another version of Python is to read."""
        if function.definition_type != api_pb2.Function.DEFINITION_TYPE_SERIALIZED:
            return
        own = ".".join(current_caller.get().python_version.split(".")[:2])
        other = self._images.python_version(function.image_id)
        if own and other and own != other:
            warn_client(
                f"{function.function_name} is serialized by Python {own}, and its image has Python "
                f"{other}: a serialized function needs the same minor version on both sides."
            )

    def _check(self, function: Any) -> None:
        check_timeout("timeout", function.timeout_secs)
        check_timeout("startup_timeout", function.startup_timeout_secs)
        check_gpu(function.resources.gpu_config)
        check_requests(function.resources)
        check_placement(function)
        check_schedule(function.schedule)
        for field, objects in self._dependencies:
            for object_id in getattr(function, field):
                objects.require(object_id)
        if function.image_id:
            self._images.require(function.image_id)
        for mount in function.volume_mounts:
            self._volumes.require(mount.volume_id)

    async def FunctionBindParams(self, request: Message) -> Message:
        base = self._functions.get(request.function_id)
        options = request.function_options if request.HasField("function_options") else None
        if options is not None:
            self._check_options(base, options)
        record = self._functions.variant(base, request.serialized_params, options)
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=record.function_id, handle_metadata=self._functions.handle(record)
        )

    def _check_options(self, base: FunctionRecord, options: Any) -> None:
        refuse(base.name, [options])
        self._warn(base.name, [options])
        if self._functions.is_defined(base):
            for ranked in self._functions.current_data(base).ranked_functions:
                check_placement(apply_options(ranked.function, options))
        if options.HasField("timeout_secs"):
            check_timeout("timeout", options.timeout_secs)
        if options.HasField("resources"):
            check_gpu(options.resources.gpu_config)
            check_requests(options.resources)
        for field, objects in self._dependencies:
            for object_id in getattr(options, field):
                objects.require(object_id)
        for mount in options.volume_mounts:
            self._volumes.require(mount.volume_id)

    async def FunctionGet(self, request: Message) -> Message:
        app = self._apps.deployed(request.app_name, request.environment_name)
        pinned = self._apps.deployment(app, request.app_version) if request.app_version else None
        function_ids = pinned.function_ids if pinned else app.function_ids
        function_id = function_ids.get(request.object_tag)
        if function_id is None:
            raise self._lookup_error(request.object_tag, function_ids, app.class_ids)
        record = self._functions.get(function_id)
        if pinned is not None:
            record = self._functions.pinned(record, pinned.definition_ids[function_id])
        return api_pb2.FunctionGetResponse(
            function_id=record.function_id,
            handle_metadata=self._functions.handle(record),
            function=self._functions.current_data(record),
        )

    def _lookup_error(
        self, tag: str, function_ids: dict[str, str], class_ids: dict[str, str]
    ) -> GRPCError:
        if tag in class_ids:
            reason = api_pb2.FunctionLookupError(
                reason=api_pb2.FunctionLookupError.REASON_CLASS_NAME_USED
            )
            return GRPCError(Status.NOT_FOUND, f"'{tag}' is a class", [reason])
        known = ", ".join(sorted(name for name in function_ids if not name.endswith(".*")))
        return GRPCError(
            Status.NOT_FOUND, f"The app has no function '{tag}'. It has: {known or 'none'}"
        )

    async def FunctionGetById(self, request: Message) -> Message:
        record = self._functions.get(request.function_id)
        return api_pb2.FunctionGetByIdResponse(
            function=self._functions.current_data(record),
            handle_metadata=self._functions.handle(record),
        )

    async def ClassCreate(self, request: Message) -> Message:
        self._apps.get(request.app_id)
        refuse("The class", [request])
        return api_pb2.ClassCreateResponse(
            class_id=request.existing_class_id or new_id("cs"),
            handle_metadata=api_pb2.ClassHandleMetadata(),
        )

    async def ClassGet(self, request: Message) -> Message:
        app = self._apps.deployed(request.app_name, request.environment_name)
        if request.object_tag not in app.class_ids:
            known = ", ".join(sorted(app.class_ids)) or "none"
            raise GRPCError(
                Status.NOT_FOUND, f"The app has no class '{request.object_tag}'. It has: {known}"
            )
        return api_pb2.ClassGetResponse(
            class_id=app.class_ids[request.object_tag],
            handle_metadata=api_pb2.ClassHandleMetadata(),
        )

    async def FunctionUpdateSchedulingParams(self, request: Message) -> Message:
        self._functions.change_settings(request.function_id, request.settings)
        self._on_settings(request.function_id)
        current = self._functions.runnable(request.function_id).first.autoscaler_settings
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=current)

    async def FunctionGetSchedulingParams(self, request: Message) -> Message:
        settings = self._functions.runnable(request.function_id).first.autoscaler_settings
        configuration = api_pb2.AutoscalerConfiguration(settings=settings, static_settings=settings)
        return api_pb2.FunctionGetSchedulingParamsResponse(autoscaler_configuration=configuration)

    async def FunctionStartPtyShell(self, _request: Message) -> Message:
        raise GRPCError(
            Status.UNIMPLEMENTED, "The emulator has no interactive containers (modal run -i)."
        )

    async def FunctionFinishInputs(self, _request: Message) -> Message:
        """Do nothing: the inputs of a call are counted when they arrive."""
        return Empty()
