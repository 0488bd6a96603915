"""Secrets: environment variables of containers, which no reply to a client contains."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.named_objects import NamedObject, NamedObjects
from modal_emulator.rpc.protocol import known_fields
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.json_file import read_json, write_json

# the limits of Modal's guide to secrets
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,16383}")
_MAX_VALUE = 32_768  # characters


class SecretService:
    """Answers the Secret RPCs; each secret is a file that only its owner can read."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "secrets"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        index = self._folder / "index.json"
        self._objects = NamedObjects(index, prefix="st", noun="Secret")
        for each in self._objects.expired():
            self._delete(each.object_id)

    async def SecretGetOrCreate(self, request: Message) -> Message:
        """Create, overwrite or find a secret."""
        _check(request.env_dict)
        secret, new = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        overwrite = api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        if new or request.object_creation_type == overwrite:
            self._write(secret, dict(request.env_dict), last_used_at=0.0)
        self._require_keys(secret, request.required_keys)
        return api_pb2.SecretGetOrCreateResponse(
            secret_id=secret.object_id, metadata=self.metadata(secret.object_id)
        )

    async def SecretGetInfo(self, request: Message) -> Message:
        """Return the name and the keys of a secret."""
        metadata = self.metadata(request.secret_id)
        return api_pb2.SecretGetInfoResponse(metadata=metadata)

    async def SecretUpdate(self, request: Message) -> Message:
        """Add and change keys, and remove those without a value."""
        secret = self._objects.get(request.secret_id)
        content = self._read(secret.object_id)
        _check({update.key: update.value for update in request.updates if update.HasField("value")})
        for update in request.updates:
            if update.HasField("value"):
                content["values"][update.key] = update.value
            else:
                content["values"].pop(update.key, None)
        self._write(secret, content["values"], last_used_at=content["last_used_at"])
        return Empty()

    async def SecretList(self, request: Message) -> Message:
        """List the named secrets."""
        items = []
        for secret in self._objects.page(request.environment_name, request.pagination):
            item = api_pb2.SecretListItem(
                label=secret.name,
                created_at=secret.created_at,
                last_used_at=self._read(secret.object_id)["last_used_at"],
                environment_name=secret.environment,
                secret_id=secret.object_id,
                metadata=self.metadata(secret.object_id),
            )
            items.append(item)
        return api_pb2.SecretListResponse(items=items, environment_name=request.environment_name)

    async def SecretDelete(self, request: Message) -> Message:
        """Delete a secret and its values."""
        self._delete(request.secret_id)
        return Empty()

    def environment(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """Return the variables of several secrets and record their use.

        Of a variable that several secrets have, the last one counts.

        Raises:
            GRPCError: If there is no such secret, perhaps not any more (NOT_FOUND).
        """
        environment: dict[str, str] = {}
        for secret_id in secret_ids:
            secret = self._objects.get(secret_id)
            values = self._read(secret_id)["values"]
            environment.update(values)
            if secret.name:
                self._write(secret, values, last_used_at=time.time())
        return environment

    def require(self, secret_id: str) -> None:
        """Check that there is such a secret.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        self._objects.get(secret_id)

    def metadata(self, secret_id: str) -> Any:
        """Return the message that describes a secret to a client, without its values."""
        secret = self._objects.get(secret_id)
        content = self._read(secret_id)
        return api_pb2.SecretMetadata(
            name=secret.name,
            creation_info=secret.creation_info(),
            keys=sorted(content["values"]),
            environment_name=secret.environment,
            # new in modal 1.6.3
            **known_fields(api_pb2.SecretMetadata, last_used_at=content["last_used_at"]),
        )

    def _require_keys(self, secret: NamedObject, required_keys: Sequence[str]) -> None:
        present = self._read(secret.object_id)["values"]
        missing = [key for key in required_keys if key not in present]
        if missing:
            message = (
                f"Secret '{secret.name}' is missing the required key(s) {', '.join(missing)}; "
                f"it has {', '.join(sorted(present)) or 'none'}"
            )
            raise GRPCError(Status.NOT_FOUND, message)

    def _file(self, secret_id: str) -> Path:
        return self._folder / f"{secret_id}.json"

    def _read(self, secret_id: str) -> dict[str, Any]:
        content: dict[str, Any] = read_json(
            self._file(secret_id), {"values": {}, "last_used_at": 0.0}
        )
        return content

    def _write(self, secret: NamedObject, values: dict[str, str], *, last_used_at: float) -> None:
        content = {"values": values, "last_used_at": last_used_at}
        write_json(self._file(secret.object_id), content)

    def _delete(self, secret_id: str) -> None:
        self._objects.delete(secret_id)
        self._file(secret_id).unlink(missing_ok=True)


def _check(values: Mapping[str, str]) -> None:
    """Refuse what can't be a variable of an environment, as Modal does.

    Raises:
        GRPCError: If something can't (INVALID_ARGUMENT); the text has no value.
    """
    for name, value in values.items():
        if _NAME.fullmatch(name) is None:
            message = (
                f"{name[:100]!r} can't be a key of a Secret: a key has letters, digits and "
                "underscores, 16384 at most, and doesn't begin with a digit"
            )
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        if len(value) > _MAX_VALUE:
            message = (
                f"the value of {name} has {len(value)} characters; a Secret takes {_MAX_VALUE}"
            )
            raise GRPCError(Status.INVALID_ARGUMENT, message)
