"""Functions and classes as the client defines them, with their variants and handles."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.function_options import apply_options
from modal_emulator.rpc.gpus import GpuRequest, requested_gpu
from modal_emulator.rpc.protocol_fields import refusals
from modal_emulator.storage.ids import content_id, new_id
from modal_emulator.storage.state import State

_DEFAULT_MAX_CONTAINERS = 32


@dataclass(frozen=True)
class Definition:
    """One version of a function: its `FunctionData` and its handle."""

    data: Any
    handle: Any


@dataclass
class FunctionRecord:
    """A function of an app, with all definitions that it ever had."""

    function_id: str
    app_id: str
    name: str
    definitions: dict[str, Definition] = field(default_factory=dict)
    # the current one; empty before the first, and later set when the app is published
    definition_id: str = ""
    # for a variant (with class parameters or options): the function whose definition it uses
    base_id: str = ""
    params: bytes = b""
    options: Any = None
    # for one that is pinned to a deployment: the definition of that deployment
    pinned_definition_id: str = ""

    def dump(self) -> bytes:
        """Serialise for the state file."""
        fields = {
            "app_id": self.app_id,
            "name": self.name,
            "definitions": {
                key: [_encode(definition.data), _encode(definition.handle)]
                for key, definition in self.definitions.items()
            },
            "definition_id": self.definition_id,
            "base_id": self.base_id,
            "params": b64encode(self.params).decode(),
            "options": _encode(self.options) if self.options is not None else None,
            "pinned_definition_id": self.pinned_definition_id,
        }
        return json.dumps(fields).encode()

    @classmethod
    def load(cls, function_id: str, data: bytes) -> FunctionRecord:
        """Read what `dump` wrote."""
        fields = json.loads(data)
        options = fields["options"]
        return cls(
            function_id=function_id,
            app_id=fields["app_id"],
            name=fields["name"],
            definitions={
                key: Definition(
                    api_pb2.FunctionData.FromString(b64decode(encoded)),
                    api_pb2.FunctionHandleMetadata.FromString(b64decode(handle)),
                )
                for key, (encoded, handle) in fields["definitions"].items()
            },
            definition_id=fields["definition_id"],
            base_id=fields["base_id"],
            params=b64decode(fields["params"]),
            options=None
            if options is None
            else api_pb2.FunctionOptions.FromString(b64decode(options)),
            # not in state folders of earlier versions
            pinned_definition_id=fields.get("pinned_definition_id", ""),
        )


def _encode(message: Any) -> str:
    return b64encode(message.SerializeToString()).decode()


def web_methods(definition: Any) -> dict[str, Any]:
    """Return the web endpoints of a function ("") or of the methods of a class, by method."""
    found = {
        name: method.webhook_config
        for name, method in definition.method_definitions.items()
        if method.webhook_config.type
    }
    if definition.webhook_config.type:
        found[""] = definition.webhook_config
    return found


@dataclass(frozen=True)
class RunnableFunction:
    """A function as containers run it: one `Function` message per acceptable GPU, by rank."""

    function_id: str
    app_id: str
    name: str
    base_id: str
    definition_id: str
    params: bytes
    ranked: tuple[Any, ...]
    gpus: tuple[GpuRequest | None, ...]
    # what it uses and is not emulated, so that it can't be called
    refused: tuple[str, ...]
    # of `modal shell`: what its container runs instead of Modal's entrypoint, and its variables
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many inputs one container can run at the same time."""
        first = self.first
        concurrent = first.target_concurrent_inputs or first.max_concurrent_inputs or 1
        return int(concurrent * max(first.batch_max_size, 1))

    @property
    def cluster_size(self) -> int:
        """How many containers run each input together."""
        return int(self.first._experimental_group_size) or 1

    @property
    def max_containers(self) -> int:
        """How many containers it can have at the same time."""
        if any(each.web_server_port for each in web_methods(self.first).values()):
            return 1  # its port is one of this machine
        return self.first.autoscaler_settings.max_containers or _DEFAULT_MAX_CONTAINERS

    @property
    def first(self) -> Any:
        """The message of the first rank; the others differ from it only in the GPU."""
        return self.ranked[0]


class Functions:
    """All functions by id, stored in the state file."""

    def __init__(self, state: State) -> None:
        self._state = state
        # a cache, because each call reads it several times
        self._runnable: dict[str, RunnableFunction] = {}
        # (function id, method of a class or "") -> address, which is another one after a restart
        self.web_urls: dict[tuple[str, str], str] = {}
        self._records = {
            function_id: FunctionRecord.load(function_id, data)
            for function_id, data in state.objects("function")
        }

    def all(self) -> list[FunctionRecord]:
        """Return every function and variant, oldest first."""
        return list(self._records.values())

    def get(self, function_id: str) -> FunctionRecord:
        """Return a function.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        if function_id not in self._records:
            raise GRPCError(Status.NOT_FOUND, f"Function '{function_id}' not found")
        return self._records[function_id]

    def save(self, record: FunctionRecord) -> None:
        """Store a new or changed function."""
        self._records[record.function_id] = record
        self._runnable.clear()
        self._state.put("function", record.function_id, record.dump())

    def reserve(self, app_id: str, existing_id: str, name: str) -> FunctionRecord:
        """Return the record of a function that will be defined, a new one unless it exists."""
        if existing_id:
            return self.get(existing_id)
        record = FunctionRecord(new_id("fu"), app_id, name)
        self._records[record.function_id] = record
        return record

    def define(self, record: FunctionRecord, data: Any, handle: Any) -> None:
        """Add a definition; the first is current at once, others when the app is published."""
        definition_id = content_id("de", data.SerializeToString(deterministic=True))
        handle.definition_id = definition_id
        record.definitions[definition_id] = Definition(data, handle)
        record.definition_id = record.definition_id or definition_id
        self.save(record)

    def variant(self, base: FunctionRecord, params: bytes, options: Any) -> FunctionRecord:
        """Return the variant of a function with class parameters or options."""
        encoded = options.SerializeToString(deterministic=True) if options is not None else b""
        variant_id = content_id("fu", base.function_id.encode(), params, encoded)
        if variant_id not in self._records:
            self.save(
                FunctionRecord(
                    variant_id,
                    base.app_id,
                    base.name,
                    base_id=base.base_id or base.function_id,
                    params=params,
                    options=options,
                    pinned_definition_id=base.pinned_definition_id,
                )
            )
        return self._records[variant_id]

    def pinned(self, base: FunctionRecord, definition_id: str) -> FunctionRecord:
        """Return the variant of a function that keeps one of its definitions."""
        variant_id = content_id("fu", base.function_id.encode(), b"pinned", definition_id.encode())
        if variant_id not in self._records:
            self.save(
                FunctionRecord(
                    variant_id,
                    base.app_id,
                    base.name,
                    base_id=base.function_id,
                    pinned_definition_id=definition_id,
                )
            )
        return self._records[variant_id]

    def is_defined(self, record: FunctionRecord) -> bool:
        """Return whether a function has a definition, not only a reserved id."""
        return bool(self._base(record).definition_id)

    def _base(self, record: FunctionRecord) -> FunctionRecord:
        return self.get(record.base_id) if record.base_id else record

    def _current(self, record: FunctionRecord) -> Definition:
        base = self._base(record)
        if not base.definition_id:
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"Function {record.name} has no definition yet"
            )
        return base.definitions[record.pinned_definition_id or base.definition_id]

    def handle(self, record: FunctionRecord) -> Any:
        """Return the current handle.

        Raises:
            GRPCError: If the function was never defined (FAILED_PRECONDITION).
        """
        handle = api_pb2.FunctionHandleMetadata()
        handle.CopyFrom(self._current(record).handle)
        handle.base_function_id = record.base_id
        self.add_urls(handle, record.base_id or record.function_id)
        return handle

    def add_urls(self, handle: Any, function_id: str) -> None:
        """Set the addresses of web endpoints in a handle."""
        handle.web_url = self.web_urls.get((function_id, ""), "")
        for name, method in handle.method_handle_metadata.items():
            method.web_url = self.web_urls.get((function_id, name), "")

    def current_data(self, record: FunctionRecord) -> Any:
        """Return the current `FunctionData`, with a variant's options applied.

        Raises:
            GRPCError: If the function was never defined (FAILED_PRECONDITION).
        """
        data = self._current(record).data
        if record.options is None:
            return data
        changed = api_pb2.FunctionData()
        changed.CopyFrom(data)
        if record.options.resources.gpu_config.count:
            # the options request one GPU type, which replaces the whole list
            del changed.ranked_functions[1:]
        for ranked in changed.ranked_functions:
            ranked.function.CopyFrom(apply_options(ranked.function, record.options))
        changed.timeout_secs = changed.ranked_functions[0].function.timeout_secs
        return changed

    def change_settings(self, function_id: str, settings: Any) -> None:
        """Change the autoscaler settings of the current definition, until the next deployment."""
        base = self._base(self.get(function_id))
        for ranked in self._current(base).data.ranked_functions:
            ranked.function.autoscaler_settings.MergeFrom(settings)
        self.save(base)

    def runnable(self, function_id: str) -> RunnableFunction:
        """Return the function as new containers run it."""
        if function_id not in self._runnable:
            self._runnable[function_id] = self._make_runnable(self.get(function_id))
        return self._runnable[function_id]

    def _make_runnable(self, record: FunctionRecord) -> RunnableFunction:
        data = self.current_data(record)
        base = self._base(record)
        ranked = tuple(
            entry.function for entry in sorted(data.ranked_functions, key=lambda r: r.rank)
        )
        return RunnableFunction(
            function_id=record.function_id,
            app_id=record.app_id,
            name=record.name,
            base_id=base.function_id,
            definition_id=record.pinned_definition_id or base.definition_id,
            params=record.params,
            ranked=ranked,
            gpus=tuple(requested_gpu(function.resources.gpu_config) for function in ranked),
            refused=tuple(refusals([data])),
        )
