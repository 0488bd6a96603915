# ruff: noqa: N802 - methods are named as the RPCs that they answer
"""modal.Dict: keys and values that are shared between containers and clients."""

from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modal_emulator.objects.named_objects import NamedObject, NamedObjects
from modal_emulator.rpc.rpc import Stream
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
        """Close the file."""
        self._db.close()

    async def DictGetOrCreate(self, stream: Stream) -> None:
        """Create or find a dict."""
        request = await stream.recv_message()
        for each in self._objects.expired():
            self._delete(each.object_id)
        found, new = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        if new:
            self._update(found.object_id, request.data)
        reply = api_pb2.DictGetOrCreateResponse(dict_id=found.object_id, metadata=_metadata(found))
        await stream.send_message(reply)

    async def DictGetById(self, stream: Stream) -> None:
        """Find a dict by id."""
        request = await stream.recv_message()
        found = self._objects.get(request.dict_id)
        reply = api_pb2.DictGetByIdResponse(dict_id=found.object_id, metadata=_metadata(found))
        await stream.send_message(reply)

    async def DictHeartbeat(self, stream: Stream) -> None:
        """Keep an ephemeral dict."""
        request = await stream.recv_message()
        self._objects.heartbeat(request.dict_id)
        await stream.send_message(Empty())

    async def DictList(self, stream: Stream) -> None:
        """List the named dicts."""
        request = await stream.recv_message()
        infos = [
            api_pb2.DictListResponse.DictInfo(
                name=each.name,
                created_at=each.created_at,
                dict_id=each.object_id,
                metadata=_metadata(each),
            )
            for each in self._objects.page(request.environment_name, request.pagination)
        ]
        reply = api_pb2.DictListResponse(dicts=infos, environment_name=request.environment_name)
        await stream.send_message(reply)

    async def DictDelete(self, stream: Stream) -> None:
        """Delete a dict and its entries."""
        request = await stream.recv_message()
        self._delete(request.dict_id)
        await stream.send_message(Empty())

    async def DictClear(self, stream: Stream) -> None:
        """Delete the entries of a dict."""
        request = await stream.recv_message()
        self._objects.get(request.dict_id)
        self._db.execute("delete from entries where dict_id = ?", (request.dict_id,))
        await stream.send_message(Empty())

    async def DictGet(self, stream: Stream) -> None:
        """Read one entry."""
        request = await stream.recv_message()
        value = self._value(request)
        reply = api_pb2.DictGetResponse(found=value is not None, value=value)
        await stream.send_message(reply)

    async def DictContains(self, stream: Stream) -> None:
        """Say whether there is an entry."""
        request = await stream.recv_message()
        found = self._value(request) is not None
        await stream.send_message(api_pb2.DictContainsResponse(found=found))

    async def DictPop(self, stream: Stream) -> None:
        """Read and delete one entry."""
        request = await stream.recv_message()
        value = self._value(request)
        delete = "delete from entries where dict_id = ? and key = ?"
        self._db.execute(delete, (request.dict_id, request.key))
        reply = api_pb2.DictPopResponse(found=value is not None, value=value)
        await stream.send_message(reply)

    async def DictLen(self, stream: Stream) -> None:
        """Count the entries."""
        request = await stream.recv_message()
        self._objects.get(request.dict_id)
        count = "select count(*) from entries where dict_id = ?"
        (length,) = self._db.execute(count, (request.dict_id,)).fetchone()
        await stream.send_message(api_pb2.DictLenResponse(len=length))

    async def DictUpdate(self, stream: Stream) -> None:
        """Set entries, or only the ones that don't exist."""
        request = await stream.recv_message()
        self._objects.get(request.dict_id)
        created = True
        if request.if_not_exists:
            created = self._insert(request.dict_id, request.updates)
        else:
            self._update(request.dict_id, request.updates)
        await stream.send_message(api_pb2.DictUpdateResponse(created=created))

    async def DictContents(self, stream: Stream) -> None:
        """Stream keys, values or both."""
        request = await stream.recv_message()
        self._objects.get(request.dict_id)
        select = "select key, value from entries where dict_id = ? order by rowid"
        for key, value in self._db.execute(select, (request.dict_id,)).fetchall():
            entry = api_pb2.DictEntry(
                key=key if request.keys else b"", value=value if request.values else b""
            )
            await stream.send_message(entry)

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
