"""No field of the messages that define an app is accepted in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpclib.client
import modal
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpclib import GRPCError, Status
from modal_proto import api_pb2, task_command_router_pb2
from modal_proto.api_grpc import ModalClientStub

import modal_emulator as package
from modal_emulator import Emulator
from modal_emulator.rpc.protocol_fields import FIELDS, Field, Treatment, refusals, warnings

# what a client sends to define functions, classes, schedules, secrets and images, and for shells
ROOTS = [
    "FunctionCreateRequest",
    "FunctionOptions",
    "ClassCreateRequest",
    "SecretGetOrCreateRequest",
    "Image",
    "SandboxCreateRequest",
    "SandboxCreateV2Request",
    "TaskExecStartRequest",
]
# messages inside of these that are passed on to containers and clients as they are
PASSED_ON = {
    "ClassParameterInfo",
    "FunctionInput",
    "FunctionSchema",
    "ObjectDependency",
    "GenericPayloadType",
}


def message_type(name: str) -> Any:
    """Return the class of a message, also of one inside another."""
    for owner in (api_pb2, api_pb2.FunctionData, api_pb2.Schedule, task_command_router_pb2):
        if hasattr(owner, name):
            return getattr(owner, name)
    raise LookupError(name)


def is_known(name: str) -> bool:
    """Return whether the installed client has a message; an earlier one lacks some."""
    try:
        return message_type(name) is not None
    except LookupError:
        return False


KNOWN = [name for name in FIELDS if is_known(name)]


def messages_inside(name: str) -> Iterator[tuple[str, FieldDescriptor]]:
    """Yield the messages that fields of a message have, maps resolved, with those fields."""
    for field in message_type(name).DESCRIPTOR.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None:
            yield inner.name, field


def sample(descriptor: Any) -> Any:
    """Return a message with something in it."""
    message = descriptor._concrete_class()
    set_field(message, descriptor.fields[0])
    return message


def set_field(message: Any, field: FieldDescriptor) -> None:
    """Set a field of a message to something other than its default."""
    value: Any
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        target = getattr(message, field.name)
        inner = field.message_type.fields_by_name["value"]
        if inner.message_type is not None:
            target["x"].MergeFrom(sample(inner.message_type))
        else:
            target["x"] = _scalar(inner)
        return
    value = sample(field.message_type) if field.message_type is not None else _scalar(field)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _scalar(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return next(each.number for each in field.enum_type.values if each.number)
    return {
        FieldDescriptor.CPPTYPE_STRING: b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_FLOAT: 1.0,
        FieldDescriptor.CPPTYPE_DOUBLE: 1.0,
    }.get(field.cpp_type, 1)


def entry(field: tuple[str, str]) -> Field:
    """Return the entry of a field."""
    return FIELDS[field[0]][field[1]]


def fields_of(treatment: Treatment, messages: list[str]) -> list[tuple[str, str]]:
    """Return the fields of the installed client that the table treats in a way."""
    return [
        (name, field)
        for name in messages
        if name in KNOWN
        for field, found in FIELDS[name].items()
        if found.treatment is treatment and field in message_type(name).DESCRIPTOR.fields_by_name
    ]


@pytest.mark.parametrize("name", KNOWN)
def test_every_field_of_the_installed_client_has_an_entry(name: str) -> None:
    protocol = {field.name for field in message_type(name).DESCRIPTOR.fields}
    assert protocol <= set(FIELDS[name])
    if version("modal") >= "1.6.4":
        # an earlier client lacks some of the fields
        assert protocol == set(FIELDS[name])


def test_every_message_inside_of_a_used_field_has_a_table() -> None:
    # a schedule is recorded with a warning, and has its effect on demand
    waiting, seen = [*ROOTS, "Schedule"], {*ROOTS, "Schedule"}
    while waiting:
        name = waiting.pop()
        for inner, field in messages_inside(name):
            used = FIELDS[name][field.name].treatment is Treatment.USED
            if used and inner not in seen | PASSED_ON:
                seen.add(inner)
                waiting.append(inner)
    assert seen == set(KNOWN)


def test_a_used_field_is_read_by_the_server_or_by_modals_code_in_the_container() -> None:
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in (Path(package.__file__).parent, Path(modal.__file__).parent)
        for file in folder.rglob("*.py")
        if file.name != "protocol_fields.py"
        and ("modal_emulator" in file.parts or "_runtime" in file.parts or file.parent == folder)
    )
    unread = [
        f"{message}.{name}"
        for message, name in fields_of(Treatment.USED, list(FIELDS))
        if f".{name}" not in code and f'"{name}"' not in code and not FIELDS[message][name].note
    ]
    assert unread == []


@pytest.mark.parametrize("treatment", Treatment)
def test_the_table_says_what_is_found_in_a_message(treatment: Treatment) -> None:
    for name, field in fields_of(treatment, list(FIELDS)):
        message = message_type(name)()
        descriptor = message.DESCRIPTOR.fields_by_name[field]
        set_field(message, descriptor)
        found = (bool(warnings([message])), bool(refusals([message])))
        # a used field can have something in it that is not used
        expected = {Treatment.WARNED: (True, False), Treatment.REFUSED: (False, True)}
        if treatment in expected:
            assert found == expected[treatment], (name, field)
        elif descriptor.message_type is None:
            assert found == (False, False), (name, field)


def test_a_field_of_a_newer_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FIELDS["Function"], "block_network")
    found = refusals([api_pb2.Function(block_network=True)])
    assert found == ["`block_network` (this server does not implement the field)"]


Call = Callable[[ModalClientStub], Awaitable[None]]


def with_client(emulator: Emulator, call: Call) -> list[str]:
    """Call RPCs as a client does, and return the warnings that came with the replies."""
    found: list[str] = []

    async def run() -> None:
        url = urlsplit(emulator.environment["MODAL_SERVER_URL"])
        channel = grpclib.client.Channel(url.hostname, url.port)

        async def authenticate(event: grpclib.events.SendRequest) -> None:
            event.metadata["x-modal-token-id"] = emulator.environment["MODAL_TOKEN_ID"]
            event.metadata["x-modal-token-secret"] = emulator.environment["MODAL_TOKEN_SECRET"]
            event.metadata["x-modal-client-version"] = version("modal")

        async def keep_warnings(event: grpclib.events.RecvTrailingMetadata) -> None:
            found.extend(unquote(each) for each in event.metadata.getall("x-modal-warning", ()))

        grpclib.events.listen(channel, grpclib.events.SendRequest, authenticate)
        grpclib.events.listen(channel, grpclib.events.RecvTrailingMetadata, keep_warnings)
        try:
            await call(ModalClientStub(channel))
        finally:
            channel.close()

    asyncio.run(run())
    return found


def in_a_function(message: str, field: str) -> Any:
    """Return a function in which one field is set, of the function or of what is in it."""
    function = api_pb2.Function(
        function_name="f", module_name="m", timeout_secs=60, startup_timeout_secs=60
    )
    owner = function
    inside = {
        "Resources": "resources",
        "GPUConfig": "resources.gpu_config",
        "SchedulerPlacement": "scheduler_placement",
        "AutoscalerSettings": "autoscaler_settings",
    }
    for name in inside.get(message, "").split("."):
        owner = getattr(owner, name) if name else owner
    if message == "MethodDefinition":
        owner = function.method_definitions["x"]
    set_field(owner, owner.DESCRIPTOR.fields_by_name[field])
    if message == "GPUConfig":
        owner.gpu_type, owner.count = "T4", 1
    return function


PARTS_OF_FUNCTIONS = [
    "Function",
    "Resources",
    "GPUConfig",
    "SchedulerPlacement",
    "AutoscalerSettings",
    "MethodDefinition",
]


def test_each_field_of_a_function_is_answered_as_the_table_says(modal_emulator: Emulator) -> None:
    app = modal.App("fields")
    recorded = fields_of(Treatment.WARNED, PARTS_OF_FUNCTIONS)
    refused = fields_of(Treatment.REFUSED, PARTS_OF_FUNCTIONS)

    async def define_all(stub: ModalClientStub) -> None:
        for message, field in recorded + refused:
            request = api_pb2.FunctionCreateRequest(
                app_id=app.app_id, function=in_a_function(message, field)
            )
            if (message, field) == ("Function", "schedule"):
                request.function.schedule.cron.cron_string = "0 9 * * *"
            made = await stub.FunctionCreate(request)
            if (message, field) not in refused:
                continue
            with pytest.raises(GRPCError) as caught:
                await stub.FunctionMap(api_pb2.FunctionMapRequest(function_id=made.function_id))
            assert caught.value.status is Status.UNIMPLEMENTED, (message, field)
            assert FIELDS[message][field].option in str(caught.value.message)

    with app.run():
        found = with_client(modal_emulator, define_all)
    expected = [
        f"The emulator records {entry(each).in_words} of f but it has no effect here."
        for each in recorded
    ] + [
        f"f uses {entry(each).in_words}, which the emulator does not emulate, "
        "so calls of it are refused."
        for each in refused
    ]
    assert found == expected


def test_each_field_of_an_image_is_answered_as_the_table_says(modal_emulator: Emulator) -> None:
    recorded = fields_of(Treatment.WARNED, ["Image"])

    async def build_all(stub: ModalClientStub) -> None:
        for treated in (recorded, fields_of(Treatment.REFUSED, ["Image"])):
            for _, field in treated:
                image = api_pb2.Image()
                set_field(image, image.DESCRIPTOR.fields_by_name[field])
                if field == "gpu_config":
                    image.gpu_config.gpu_type, image.gpu_config.count = "T4", 1
                    image.gpu_config.type = 0
                request = api_pb2.ImageGetOrCreateRequest(image=image)
                if treated is recorded:
                    await stub.ImageGetOrCreate(request)
                    continue
                with pytest.raises(GRPCError, match=field):
                    await stub.ImageGetOrCreate(request)

    assert with_client(modal_emulator, build_all) == [
        f"The emulator records {entry(each).in_words} of an image but it has no effect here."
        for each in recorded
    ]


def test_options_and_classes_with_something_that_is_not_emulated_are_refused(
    modal_emulator: Emulator,
) -> None:
    app = modal.App("options")

    @app.function(serialized=True)
    def f() -> None:
        return None

    async def bind_all(stub: ModalClientStub) -> None:
        for _, field in fields_of(Treatment.REFUSED, ["FunctionOptions"]):
            options = api_pb2.FunctionOptions()
            set_field(options, options.DESCRIPTOR.fields_by_name[field])
            request = api_pb2.FunctionBindParamsRequest(
                function_id=f.object_id, function_options=options
            )
            with pytest.raises(GRPCError, match="does not emulate"):
                await stub.FunctionBindParams(request)
        methods = api_pb2.ClassCreateRequest(app_id=app.app_id, methods=[api_pb2.ClassMethod()])
        methods.methods[0].function_name = "m"
        with pytest.raises(GRPCError, match="methods"):
            await stub.ClassCreate(methods)
        options = api_pb2.FunctionOptions(cloud_provider_str="aws", routing_region="eu")
        request = api_pb2.FunctionBindParamsRequest(
            function_id=f.object_id, function_options=options
        )
        await stub.FunctionBindParams(request)

    with app.run():
        found = with_client(modal_emulator, bind_all)
    assert ["`cloud`" in found[0], "`routing_region`" in found[1], len(found)] == [True, True, 2]
