"""Clustered functions: so many containers run each input together, and rank 0's output counts."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator
from modal_emulator.control.info import ContainerInfo
from tests.support.waiting import wait_until

register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the loopback interface has one address there"
)


def meet(port: int) -> dict[str, Any]:
    """Exchange a message with the other containers: each is at an address of its own."""
    cluster = modal.Cluster.from_context()
    rank, addresses = cluster.container_rank(), cluster.container_ips("ipv4")
    if rank == 0:
        with socket.create_server((addresses[0], port)) as server:
            connections = [server.accept()[0] for _ in addresses[1:]]
        heard = sorted(connection.recv(9).decode() for connection in connections)
    else:
        while True:
            try:
                with socket.create_connection((addresses[0], port)) as connection:
                    connection.sendall(f"from {rank}".encode())
                break
            except ConnectionRefusedError:
                continue
        heard = []
    return {
        "rank": rank,
        "addresses": addresses,
        "heard": heard,
        "task_ids": cluster.container_ids(),
        "task_id": os.environ["MODAL_TASK_ID"],
    }


def fail_once(key: str) -> str:
    """Let the second container die at the first attempt, while the first one waits for it."""
    rank = modal.Cluster.from_context().container_rank()
    seen = modal.Dict.from_name("deaths", create_if_missing=True)
    attempt = 0 if seen.put(f"{key}{rank}", True, skip_if_exists=True) else 1
    if attempt == 0:
        if rank == 1:
            while not seen.contains(
                f"{key}0"
            ):  # else it would be the first one's first attempt again
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return f"attempt {attempt}"


def wait_for_ever(key: str) -> None:
    queue = modal.Queue.from_name("began", create_if_missing=True)
    queue.put(modal.Cluster.from_context().container_rank(), partition=key)
    signal.pause()


def clustered(app: modal.App, function: Any, size: int, **options: Any) -> Any:
    options = {"gpu": "T4", "serialized": True, "name": function.__name__, **options}
    return app.function(**options)(modal.clustered(size=size)(function))


def test_each_input_is_run_by_all_containers_of_a_cluster(modal_emulator: Emulator) -> None:
    app = modal.App("meets")
    function = clustered(app, meet, 3)
    with app.run():
        first, second = function.remote(4242), function.remote(4242)
        containers = [
            each for each in modal_emulator.containers() if each.task_id in first["task_ids"]
        ]
    assert (first["rank"], first["heard"]) == (0, ["from 1", "from 2"])
    assert second == first  # by the same containers
    assert first["task_ids"][0] == first["task_id"]
    assert len(set(first["addresses"])) == 3
    assert [each.gpu for each in containers] == ["T4"] * 3
    [inputs] = [call.inputs for call in modal_emulator.calls("meet")[-1:]]
    assert [each.starts for each in inputs] == [1]


def test_several_clusters_at_once_have_addresses_of_their_own(modal_emulator: Emulator) -> None:
    app = modal.App("meets-twice")
    function = clustered(app, meet, 2, max_containers=4)
    with app.run():
        calls = [function.spawn(4243) for _ in range(2)]
        assert [call.get()["heard"] for call in calls] == [["from 1"]] * 2


def test_a_container_that_dies_takes_its_cluster_with_it_and_the_input_runs_again(
    modal_emulator: Emulator,
) -> None:
    app = modal.App("dies-in-cluster")
    function = clustered(app, fail_once, 2)
    with app.run():
        assert function.remote("a") == "attempt 1"
    [item] = modal_emulator.calls("fail_once")[-1].inputs
    assert (item.attempts, item.starts) == (1, 2)

    def ours() -> list[ContainerInfo]:
        return [c for c in modal_emulator.containers() if c.function_name == "fail_once"]

    wait_until(lambda: not any(c.running_input_ids for c in ours()), "the end of the input in all")
    assert len(ours()) == 4


def test_a_timeout_ends_all_containers(modal_emulator: Emulator) -> None:
    app = modal.App("waits-in-cluster")
    function = clustered(app, wait_for_ever, 2, timeout=2)
    with app.run(), pytest.raises(modal.exception.FunctionTimeoutError):
        function.remote("b")
    queue = modal.Queue.from_name("began", create_if_missing=True)
    assert sorted(queue.get_many(2, partition="b")) == [0, 1]

    def have_ended() -> bool:
        ours = [c for c in modal_emulator.containers() if c.function_name == "wait_for_ever"]
        return len(ours) >= 2 and all(container.ended_at for container in ours)

    wait_until(have_ended, "the end of the containers")
