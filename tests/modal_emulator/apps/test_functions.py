"""Calls of functions through the real client."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator

import emulated_calls as calls
import modal
import pytest
from modal.exception import (
    FunctionTimeoutError,
    InternalFailure,
    InvalidError,
    SerializationError,
)

from modal_emulator import Emulator


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with calls.app.run():
        yield


def test_remote_returns_the_value() -> None:
    assert calls.square.remote(7) == 49


def test_remote_awaited_returns_the_value() -> None:
    async def call() -> list[int]:
        return list(
            await asyncio.gather(calls.square.remote.aio(2), calls.async_square.remote.aio(3))
        )

    assert asyncio.run(call()) == [4, 9]


def test_a_warm_container_is_used_again() -> None:
    assert calls.where.remote() == calls.where.remote()


def test_map_keeps_the_order_of_its_inputs() -> None:
    assert list(calls.square.map(range(60))) == [x * x for x in range(60)]


def test_unordered_map_returns_every_output() -> None:
    outputs = calls.square.map(range(20), order_outputs=False)
    assert sorted(outputs) == [x * x for x in range(20)]


def test_map_raises_the_exception_of_an_input() -> None:
    with pytest.raises(ValueError, match="1 is odd"):
        list(calls.fail_on_odd.map([0, 1]))


def test_map_returns_exceptions_when_asked_to() -> None:
    outputs = list(calls.fail_on_odd.map(range(4), return_exceptions=True))
    assert [outputs[0], outputs[2]] == [0, 2]
    assert [str(outputs[1]), str(outputs[3])] == ["1 is odd", "3 is odd"]


def test_starmap_and_for_each() -> None:
    assert list(calls.add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert calls.square.for_each([1, 2]) is None


def test_generators_yield_as_they_run() -> None:
    assert list(calls.count_up.remote_gen(5)) == [0, 1, 2, 3, 4]

    async def collect() -> list[int]:
        return [x async for x in calls.count_up_async.remote_gen.aio(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_an_exception_arrives_with_its_type_and_remote_traceback() -> None:
    with pytest.raises(ValueError, match="what went wrong") as caught:
        calls.fail.remote("what went wrong")
    files = [frame.path for frame in caught.traceback]
    assert any("emulated_calls.py" in str(path) for path in files)


def test_system_exit_arrives_as_such() -> None:
    with pytest.raises(SystemExit) as caught:
        calls.leave.remote(3)
    assert caught.value.code == 3


def test_a_timeout_kills_the_container_and_the_next_call_works() -> None:
    for _ in range(2):
        with pytest.raises(FunctionTimeoutError, match="timeout of 1s"):
            calls.sleep_too_long.remote()


def test_a_crash_of_the_container_is_an_internal_failure() -> None:
    with pytest.raises(InternalFailure, match="exited with code 7"):
        calls.crash.remote()


def test_functions_call_functions(modal_emulator: Emulator) -> None:
    call = calls.call_square.spawn(6)
    assert call.get() == 37
    graph = call.get_call_graph()
    assert [node.function_name for node in graph] == ["call_square"]
    assert [node.function_name for node in graph[0].children] == ["square"]


def test_large_arguments_and_results_travel_as_blobs() -> None:
    data = os.urandom(5_000_000)
    assert calls.reverse.remote(data) == data[::-1]
    assert calls.reverse.spawn(data[:20_000]).get() == data[:20_000][::-1]


def test_concurrent_inputs_share_a_container() -> None:
    found = list(calls.meet.map([uuid.uuid4().hex] * 3, [3] * 3))
    assert {len(set(task_ids)) for task_ids in found} == {1}


def test_batched_inputs_arrive_together() -> None:
    assert max(calls.batch_sizes.map(range(8))) == 4


def test_single_use_containers_run_one_input_each() -> None:
    assert calls.where_once.remote() != calls.where_once.remote()


def test_experimental_spawn_map_gives_one_call_with_all_results() -> None:
    call = calls.square.experimental_spawn_map(range(5))
    assert [call.get(index=i) for i in range(5)] == [0, 1, 4, 9, 16]


def test_current_stats_count_running_and_waiting_inputs() -> None:
    stats = calls.square.get_current_stats()
    assert stats.backlog == 0
    assert stats.num_total_runners >= 1


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_call() -> None:
    # modal 1.6.0 passes the TypeError of pickle on.
    with pytest.raises((SerializationError, TypeError)):
        calls.return_a_lock.remote()


def test_an_app_cannot_be_called_after_its_end() -> None:
    app = modal.App("ended")

    @app.function(serialized=True)
    def one() -> int:
        return 1

    with app.run():
        assert one.remote() == 1
        handle = modal.Function.from_id(one.object_id)
        handle.hydrate()
    with pytest.raises((InvalidError, modal.exception.Error), match="stopped"):
        handle.remote()
