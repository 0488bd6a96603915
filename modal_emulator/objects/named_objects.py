"""Names, ids and lifetimes of volumes, secrets, dicts and queues."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from modal._utils.name_utils import is_valid_object_name
from modal_proto import api_pb2

from modal_emulator.objects.environments import DEFAULT_ENVIRONMENT
from modal_emulator.storage.ids import new_id
from modal_emulator.storage.json_file import read_json, write_json

# the client of an ephemeral object sends a heartbeat every 300 s
EPHEMERAL_LIFETIME_S = 900.0


@dataclass(frozen=True)
class NamedObject:
    """One object; `name` is empty if it has none, `expires_at` is 0 unless it is ephemeral."""

    object_id: str
    name: str
    environment: str
    created_at: float
    expires_at: float = 0.0
    version: int = 0

    def creation_info(self) -> Any:
        """Return the time and author of its creation, which the client's `info()` returns."""
        return api_pb2.CreationInfo(created_at=self.created_at, created_by="local")


class NamedObjects:
    """All objects of one kind, stored in a JSON file; thread-safe."""

    def __init__(self, index: Path, *, prefix: str, noun: str) -> None:
        self._index = index
        self._prefix = prefix
        self._noun = noun
        self._lock = threading.RLock()
        rows = read_json(index, [])
        self._objects = {row["object_id"]: NamedObject(**row) for row in rows}

    def get_or_create(
        self, name: str, environment: str, creation_type: int, *, version: int = 0
    ) -> tuple[NamedObject, bool]:
        """Return the object of a GetOrCreate request, and whether it is new.

        Raises:
            GRPCError: If the name is invalid (INVALID_ARGUMENT), or, depending on
                `creation_type`, exists already (ALREADY_EXISTS) or doesn't exist (NOT_FOUND).
        """
        environment = environment or DEFAULT_ENVIRONMENT
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL:
            expires_at = time.time() + EPHEMERAL_LIFETIME_S
            return self._add("", environment, version, expires_at=expires_at), True
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
            return self._add("", environment, version), True
        self._check_name(name)
        with self._lock:
            existing = self._find(name, environment)
            if existing is not None:
                if creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                    message = f"{self._noun} '{name}' already exists in environment '{environment}'"
                    raise GRPCError(Status.ALREADY_EXISTS, message)
                return existing, False
            if creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                message = f"{self._noun} '{name}' not found in environment '{environment}'"
                raise GRPCError(Status.NOT_FOUND, message)
            return self._add(name, environment, version), True

    def get(self, object_id: str) -> NamedObject:
        """Return the object with this id.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        try:
            return self._objects[object_id]
        except KeyError:
            message = f"{self._noun} with id '{object_id}' not found"
            raise GRPCError(Status.NOT_FOUND, message) from None

    def page(self, environment: str, pagination: Any) -> list[NamedObject]:
        """Return one page of the named objects of an environment, newest first."""
        environment = environment or DEFAULT_ENVIRONMENT
        before = pagination.created_before or float("inf")
        found = [
            each
            for each in self._all()
            if each.name and each.environment == environment and each.created_at < before
        ]
        found.sort(key=lambda each: each.created_at, reverse=True)
        return found[: pagination.max_objects or None]

    def rename(self, object_id: str, name: str) -> None:
        """Rename an object.

        Raises:
            GRPCError: If there is none with this id (NOT_FOUND), the name is invalid
                (INVALID_ARGUMENT) or another object has it (ALREADY_EXISTS).
        """
        self._check_name(name)
        with self._lock:
            renamed = self.get(object_id)
            if self._find(name, renamed.environment) not in (None, renamed):
                message = f"{self._noun} '{name}' already exists; choose another name or delete it"
                raise GRPCError(Status.ALREADY_EXISTS, message)
            self._objects[object_id] = replace(renamed, name=name)
            self._save()

    def delete(self, object_id: str) -> None:
        """Delete an object from the list.

        Raises:
            GRPCError: If there is none with this id (NOT_FOUND).
        """
        with self._lock:
            self.get(object_id)
            del self._objects[object_id]
            self._save()

    def heartbeat(self, object_id: str) -> None:
        """Extend the lifetime of an ephemeral object."""
        with self._lock:
            found = self.get(object_id)
            if found.expires_at:
                expires_at = time.time() + EPHEMERAL_LIFETIME_S
                self._objects[object_id] = replace(found, expires_at=expires_at)
                self._save()

    def expired(self) -> list[NamedObject]:
        """Return the ephemeral objects whose client sends no heartbeats any more."""
        now = time.time()
        return [each for each in self._all() if 0 < each.expires_at < now]

    def _all(self) -> list[NamedObject]:
        with self._lock:
            return list(self._objects.values())

    def _find(self, name: str, environment: str) -> NamedObject | None:
        for each in self._all():
            if each.name == name and each.environment == environment:
                return each
        return None

    def _check_name(self, name: str) -> None:
        if not is_valid_object_name(name):
            message = (
                f"Invalid {self._noun} name: '{name}'. Names hold 1 to 64 letters, digits, "
                "dashes, periods and underscores."
            )
            raise GRPCError(Status.INVALID_ARGUMENT, message)

    def _add(
        self, name: str, environment: str, version: int, *, expires_at: float = 0.0
    ) -> NamedObject:
        added = NamedObject(
            object_id=new_id(self._prefix),
            name=name,
            environment=environment,
            created_at=time.time(),
            expires_at=expires_at,
            version=version,
        )
        with self._lock:
            self._objects[added.object_id] = added
            self._save()
        return added

    def _save(self) -> None:
        write_json(self._index, [asdict(each) for each in self._all()])
