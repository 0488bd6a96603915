"""modal.Queue, shared by this process and containers."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InvalidError, NotFoundError

pytestmark = pytest.mark.usefixtures("modal_emulator")
register_pickle_by_value(sys.modules[__name__])

_numbers = itertools.count()


def new_name(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


def test_a_queue_is_first_in_first_out_in_each_partition() -> None:
    with modal.Queue.ephemeral() as shared:
        shared.put_many([1, 2, 3])
        shared.put("other", partition="p")

        assert shared.len() == 3
        assert shared.len(partition="p") == 1
        assert shared.len(total=True) == 4
        assert list(shared.iterate()) == [1, 2, 3]
        assert shared.get() == 1
        assert shared.get_many(10) == [2, 3]
        assert shared.get(block=False) is None
        assert shared.get_many(5, block=False) == []
        assert shared.get(partition="p") == "other"

        shared.put_many([1, 2])
        shared.put(3, partition="p")
        shared.clear()
        assert shared.len(total=True) == 1
        shared.clear(all=True)
        assert shared.len(total=True) == 0


def test_a_queue_waits_for_an_item() -> None:
    with modal.Queue.ephemeral() as shared:
        with pytest.raises(queue.Empty):
            shared.get(timeout=0.05)

        received: list[Any] = []
        waiting = threading.Thread(target=lambda: received.append(shared.get(timeout=60)))
        waiting.start()
        time.sleep(0.1)
        shared.put("came")
        waiting.join(60)
        assert received == ["came"]


def test_iterating_a_queue_waits_for_more() -> None:
    with modal.Queue.ephemeral() as shared:
        shared.put("first")
        items = shared.iterate(item_poll_timeout=60)
        assert next(items) == "first"
        shared.put("second")
        assert next(items) == "second"
        items.close()
        assert shared.len() == 2


def test_items_expire_with_their_partition() -> None:
    with modal.Queue.ephemeral() as shared:
        shared.put("short", partition="p", partition_ttl=1)
        shared.put("long")
        deadline = time.monotonic() + 60
        while shared.len(partition="p") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shared.get(block=False, partition="p") is None
        assert shared.get(block=False) == "long"


def test_a_partition_holds_64_mib() -> None:
    item = b"x" * 1_000_000
    with modal.Queue.ephemeral() as shared:
        for _ in range(4):
            shared.put_many([item] * 16)
        shared.put_many([item] * 3)
        with pytest.raises(queue.Full, match="67108864 bytes"):
            shared.put(item, block=False)
        shared.put(item, partition="another", block=False)
        shared.get()
        shared.put(item, block=False)


def test_a_full_partition_and_a_large_item_are_refused() -> None:
    with modal.Queue.ephemeral() as shared:
        shared.put_many(list(range(5000)))
        with pytest.raises(queue.Full, match="5000"):
            shared.put("one more", block=False)
        shared.put("elsewhere", partition="p", block=False)
        with pytest.raises(InvalidError, match="1048576 bytes"):
            shared.put(b"x" * 1_100_000, partition="p")


def test_named_queues_are_found_listed_and_deleted() -> None:
    name = new_name("queue")
    with pytest.raises(NotFoundError, match=name):
        modal.Queue.from_name(name).hydrate()
    shared = modal.Queue.from_name(name, create_if_missing=True)
    shared.put("item")
    assert modal.Queue.from_id(shared.object_id).len() == 1
    assert name in [each.name for each in modal.Queue.objects.list()]

    modal.Queue.objects.delete(name)
    with pytest.raises(NotFoundError):
        shared.len()


def answer(questions: modal.Queue, answers: modal.Dict) -> int:
    """In a container: answer questions until there is None."""
    count = 0
    while (question := questions.get(timeout=60)) is not None:
        answers[question] = question * 2
        count += 1
    return count


def test_containers_share_dicts_and_queues() -> None:
    app = modal.App("sharing")
    function = app.function(serialized=True)(answer)
    with modal.Queue.ephemeral() as questions, modal.Dict.ephemeral() as answers, app.run():
        calls = [function.spawn(questions, answers) for _ in range(2)]
        questions.put_many([*range(50), None, None])
        assert sum(call.get(timeout=60) for call in calls) == 50
        assert dict(answers.items()) == {number: number * 2 for number in range(50)}
