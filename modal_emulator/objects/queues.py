"""modal.Queue: items in partitions, first in, first out, that containers and clients share."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.objects.named_objects import NamedObject, NamedObjects
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.rpc import Message
from modal_emulator.storage.sqlite_file import open_sqlite, transaction

# as documented by Modal
MAX_ITEMS_PER_PARTITION = 5_000
MAX_ITEM_BYTES = 1024 * 1024
MAX_PARTITION_BYTES = 64 * 1024 * 1024

_SCHEMA = """
create table if not exists items (
    item_id integer primary key autoincrement, queue_id text not null,
    partition blob not null, value blob not null, expires_at real not null
);
create index if not exists items_by_queue on items (queue_id, partition, item_id);
"""


class QueueService:
    """Answers the Queue RPCs."""

    def __init__(self, state_dir: Path) -> None:
        folder = state_dir / "queues"
        self._objects = NamedObjects(folder / "index.json", prefix="qu", noun="Queue")
        self._db = open_sqlite(folder / "items.sqlite", _SCHEMA)
        self._puts: defaultdict[str, Notifier] = defaultdict(Notifier)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    async def QueueGetOrCreate(self, request: Message) -> Message:
        """Create or find a queue."""
        for each in self._objects.expired():
            self._delete(each.object_id)
        found, _ = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        return api_pb2.QueueGetOrCreateResponse(queue_id=found.object_id, metadata=_metadata(found))

    async def QueueGetById(self, request: Message) -> Message:
        """Find a queue by id."""
        found = self._objects.get(request.queue_id)
        return api_pb2.QueueGetByIdResponse(queue_id=found.object_id, metadata=_metadata(found))

    async def QueueHeartbeat(self, request: Message) -> Message:
        """Extend the lifetime of an ephemeral queue."""
        self._objects.heartbeat(request.queue_id)
        return Empty()

    async def QueueList(self, request: Message) -> Message:
        """List the named queues with their lengths."""
        infos = []
        self._delete_expired_items()
        for each in self._objects.page(request.environment_name, request.pagination):
            count = "select count(distinct partition), count(*) from items where queue_id = ?"
            partitions, items = self._db.execute(count, (each.object_id,)).fetchone()
            info = api_pb2.QueueListResponse.QueueInfo(
                name=each.name,
                created_at=each.created_at,
                num_partitions=partitions,
                total_size=min(items, request.total_size_limit or items),
                queue_id=each.object_id,
                metadata=_metadata(each),
            )
            infos.append(info)
        return api_pb2.QueueListResponse(queues=infos, environment_name=request.environment_name)

    async def QueueDelete(self, request: Message) -> Message:
        """Delete a queue and its items."""
        self._delete(request.queue_id)
        return Empty()

    async def QueueClear(self, request: Message) -> Message:
        """Delete the items of one partition, or of all."""
        self._objects.get(request.queue_id)
        where, values = _where(request, request.all_partitions)
        self._db.execute(f"delete from items where {where}", values)
        return Empty()

    async def QueueLen(self, request: Message) -> Message:
        """Count the items of one partition, or of all."""
        self._objects.get(request.queue_id)
        where, values = _where(request, request.total)
        return api_pb2.QueueLenResponse(len=self._count(where, values))

    async def QueuePut(self, request: Message) -> Message:
        """Append items to a partition."""
        self._objects.get(request.queue_id)
        if any(len(value) > MAX_ITEM_BYTES for value in request.values):
            message = f"An item of a Queue can have {MAX_ITEM_BYTES} bytes at most"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        where, values = _where(request, all_partitions=False)
        if self._count(where, values) + len(request.values) > MAX_ITEMS_PER_PARTITION:
            message = f"A partition of a Queue can hold {MAX_ITEMS_PER_PARTITION} items at most"
            raise GRPCError(Status.RESOURCE_EXHAUSTED, message)
        size = f"select coalesce(sum(length(value)), 0) from items where {where}"
        new_bytes = sum(len(value) for value in request.values)
        if self._db.execute(size, values).fetchone()[0] + new_bytes > MAX_PARTITION_BYTES:
            message = f"A partition of a Queue can hold {MAX_PARTITION_BYTES} bytes at most"
            raise GRPCError(Status.RESOURCE_EXHAUSTED, message)
        expires_at = time.time() + request.partition_ttl_seconds
        insert = "insert into items (queue_id, partition, value, expires_at) values (?, ?, ?, ?)"
        rows = [(*values, value, expires_at) for value in request.values]
        with transaction(self._db):
            # a put restarts the lifetime of the whole partition
            update = f"update items set expires_at = ? where {where}"
            self._db.execute(update, (expires_at, *values))
            self._db.executemany(insert, rows)
        self._puts[request.queue_id].notify()
        return Empty()

    async def QueueGet(self, request: Message) -> Message:
        """Remove and return items of a partition, after waiting for the first one if need be."""
        deadline = time.monotonic() + request.timeout
        taken = self._take(request)
        while not taken and await self._wait_for_put(request.queue_id, deadline):
            taken = self._take(request)
        return api_pb2.QueueGetResponse(values=taken)

    async def QueueNextItems(self, request: Message) -> Message:
        """Return the items after a given one without removing them."""
        deadline = time.monotonic() + request.item_poll_timeout
        items = self._items_after(request)
        while not items and await self._wait_for_put(request.queue_id, deadline):
            items = self._items_after(request)
        return api_pb2.QueueNextItemsResponse(items=items)

    async def _wait_for_put(self, queue_id: str, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        await self._puts[queue_id].wait(remaining)
        return True

    def _take(self, request: Any) -> list[bytes]:
        self._objects.get(request.queue_id)
        self._delete_expired_items()
        where, values = _where(request, all_partitions=False)
        rows = self._db.execute(
            f"select item_id, value from items where {where} order by item_id limit ?",
            (*values, max(request.n_values, 1)),
        ).fetchall()
        delete = "delete from items where item_id = ?"
        self._db.executemany(delete, [(item_id,) for item_id, _ in rows])
        return [value for _, value in rows]

    def _items_after(self, request: Any) -> list[Any]:
        self._objects.get(request.queue_id)
        self._delete_expired_items()
        where, values = _where(request, all_partitions=False)
        rows = self._db.execute(
            f"select item_id, value from items where {where} and item_id > ? "
            "order by item_id limit 100",
            (*values, int(request.last_entry_id or 0)),
        ).fetchall()
        return [api_pb2.QueueItem(value=value, entry_id=str(item_id)) for item_id, value in rows]

    def _count(self, where: str, values: tuple[Any, ...]) -> int:
        self._delete_expired_items()
        count = f"select count(*) from items where {where}"
        return int(self._db.execute(count, values).fetchone()[0])

    def _delete_expired_items(self) -> None:
        self._db.execute("delete from items where expires_at < ?", (time.time(),))

    def _delete(self, queue_id: str) -> None:
        self._objects.delete(queue_id)
        self._db.execute("delete from items where queue_id = ?", (queue_id,))
        # wakes the RPCs that wait for an item, which then fail because there is no such queue
        self._puts.pop(queue_id, Notifier()).notify()


def _where(request: Any, all_partitions: bool) -> tuple[str, tuple[Any, ...]]:
    if all_partitions:
        return "queue_id = ?", (request.queue_id,)
    return "queue_id = ? and partition = ?", (request.queue_id, request.partition_key)


def _metadata(found: NamedObject) -> Any:
    return api_pb2.QueueMetadata(name=found.name, creation_info=found.creation_info())
