"""modal.Dict: keys and values that containers and clients share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modal_emulator.objects.named_objects import NamedObject, NamedObjects
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.sqlite_file import open_sqlite, transaction

_SCHEMA = """
create table if not exists entries (
    dict_id text not null, key blob not null, value blob not null, primary key (dict_id, key)
);
"""


class DictService:
    """Answers the Dict RPCs."""

    def __init__(self, state_dir: Path) -> None:
        folder = state_dir / "dicts"
        self._objects = NamedObjects(folder / "index.json", prefix="di", noun="Dict")
        self._db = open_sqlite(folder / "entries.sqlite", _SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    async def DictGetOrCreate(self, request: Message) -> Message:
        """Create or find a dict."""
        for each in self._objects.expired():
            self._delete(each.object_id)
        found, new = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        if new:
            self._update(found.object_id, request.data)
        return api_pb2.DictGetOrCreateResponse(dict_id=found.object_id, metadata=_metadata(found))

    async def DictGetById(self, request: Message) -> Message:
        """Find a dict by id."""
        found = self._objects.get(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=found.object_id, metadata=_metadata(found))

    async def DictHeartbeat(self, request: Message) -> Message:
        """Extend the lifetime of an ephemeral dict."""
        self._objects.heartbeat(request.dict_id)
        return Empty()

    async def DictList(self, request: Message) -> Message:
        """List the named dicts."""
        infos = [
            api_pb2.DictListResponse.DictInfo(
                name=each.name,
                created_at=each.created_at,
                dict_id=each.object_id,
                metadata=_metadata(each),
            )
            for each in self._objects.page(request.environment_name, request.pagination)
        ]
        return api_pb2.DictListResponse(dicts=infos, environment_name=request.environment_name)

    async def DictDelete(self, request: Message) -> Message:
        """Delete a dict and its entries."""
        self._delete(request.dict_id)
        return Empty()

    async def DictClear(self, request: Message) -> Message:
        """Delete the entries of a dict."""
        self._objects.get(request.dict_id)
        self._db.execute("delete from entries where dict_id = ?", (request.dict_id,))
        return Empty()

    async def DictGet(self, request: Message) -> Message:
        """Read one entry."""
        value = self._value(request)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictContains(self, request: Message) -> Message:
        """Return whether there is an entry."""
        found = self._value(request) is not None
        return api_pb2.DictContainsResponse(found=found)

    async def DictPop(self, request: Message) -> Message:
        """Read and delete one entry."""
        value = self._value(request)
        delete = "delete from entries where dict_id = ? and key = ?"
        self._db.execute(delete, (request.dict_id, request.key))
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictLen(self, request: Message) -> Message:
        """Count the entries."""
        self._objects.get(request.dict_id)
        count = "select count(*) from entries where dict_id = ?"
        (length,) = self._db.execute(count, (request.dict_id,)).fetchone()
        return api_pb2.DictLenResponse(len=length)

    async def DictUpdate(self, request: Message) -> Message:
        """Set entries, all or only those whose key is new."""
        self._objects.get(request.dict_id)
        created = True
        if request.if_not_exists:
            created = self._insert(request.dict_id, request.updates)
        else:
            self._update(request.dict_id, request.updates)
        return api_pb2.DictUpdateResponse(created=created)

    async def DictContents(self, request: Message) -> AsyncIterator[Message]:
        """Yield keys, values or both."""
        self._objects.get(request.dict_id)
        select = "select key, value from entries where dict_id = ? order by rowid"
        for key, value in self._db.execute(select, (request.dict_id,)).fetchall():
            entry = api_pb2.DictEntry(
                key=key if request.keys else b"", value=value if request.values else b""
            )
            yield entry

    def _value(self, request: Any) -> bytes | None:
        self._objects.get(request.dict_id)
        select = "select value from entries where dict_id = ? and key = ?"
        row = self._db.execute(select, (request.dict_id, request.key)).fetchone()
        return None if row is None else bytes(row[0])

    def _update(self, dict_id: str, entries: Any) -> None:
        upsert = (
            "insert into entries values (?, ?, ?) "
            "on conflict (dict_id, key) do update set value = excluded.value"
        )
        rows = [(dict_id, entry.key, entry.value) for entry in entries]
        with transaction(self._db):
            self._db.executemany(upsert, rows)

    def _insert(self, dict_id: str, entries: Any) -> bool:
        insert = "insert or ignore into entries values (?, ?, ?)"
        rows = [(dict_id, entry.key, entry.value) for entry in entries]
        return self._db.executemany(insert, rows).rowcount == len(rows)

    def _delete(self, dict_id: str) -> None:
        self._objects.delete(dict_id)
        self._db.execute("delete from entries where dict_id = ?", (dict_id,))


def _metadata(found: NamedObject) -> Any:
    return api_pb2.DictMetadata(name=found.name, creation_info=found.creation_info())
