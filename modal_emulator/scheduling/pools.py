"""Container pools: the containers of a function, and the inputs that wait for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from modal_proto import api_pb2

from modal_emulator.apps.calls import Input
from modal_emulator.containers.container import Container
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.scheduling.crashes import Crashes


class ContainerPool:
    """The containers of one function or variant, and the inputs that wait for one."""

    def __init__(self, function_id: str) -> None:
        self.function_id = function_id
        self.waiting: deque[Input] = deque()
        self.containers: dict[str, Container] = {}
        # a definition whose containers fail to start, so that no minimum of them is kept
        self.broken_definition_id = ""
        self.crashes = Crashes()
        # notified when there are new inputs, and when a container should exit
        self.changed = Notifier()

    @property
    def live(self) -> list[Container]:
        """The containers that take inputs, or will once they have started: one of each cluster."""
        return [each for each in self.containers.values() if each.leads and not each.stopping]

    @property
    def free_slots(self) -> int:
        """How many more inputs the live containers can run at the same time."""
        return sum(each.slots - len(each.running) for each in self.live)

    def add(self, items: Iterable[Input]) -> None:
        """Append inputs to those that wait."""
        self.waiting.extend(items)
        self.changed.notify()

    def add_first(self, items: Iterable[Input]) -> None:
        """Insert inputs, which have run already, before those that wait."""
        self.waiting.extendleft(reversed(list(items)))
        self.changed.notify()

    def running(self, item: Input) -> Container | None:
        """Return the container that runs an input, if one does."""
        for container in self.containers.values():
            if container.leads and item.input_id in container.running:
                return container
        return None


class ContainerPools:
    """All pools by function id, and the containers that have ended."""

    def __init__(self) -> None:
        self._pools: dict[str, ContainerPool] = {}
        # the containers of `modal shell`, which belong to no function
        self.shells = ContainerPool("")
        self.ended: list[Container] = []

    def all(self) -> list[ContainerPool]:
        """Return all pools."""
        return list(self._pools.values())

    def get(self, function_id: str) -> ContainerPool:
        """Return the pool of a function, an empty one if it has none yet."""
        if function_id not in self._pools:
            self._pools[function_id] = ContainerPool(function_id)
        return self._pools[function_id]

    def containers(self) -> list[Container]:
        """Return all containers that have not ended."""
        pools = [*self._pools.values(), self.shells]
        return [each for pool in pools for each in pool.containers.values()]

    def container(self, task_id: str) -> Container | None:
        """Return a container, unless it has ended."""
        return next((each for each in self.containers() if each.task_id == task_id), None)

    def of_app(self, app_id: str) -> list[Container]:
        """Return the containers of an app that have not ended."""
        return [each for each in self.containers() if each.function.app_id == app_id]

    def stats(self, function_id: str) -> Any:
        """Return the `FunctionStats` message of a function."""
        pool = self.get(function_id)
        return api_pb2.FunctionStats(
            backlog=len(pool.waiting),
            num_total_tasks=len(pool.containers),
            num_running_inputs=sum(len(each.running) for each in pool.containers.values()),
            input_headroom=max(0, pool.free_slots),
        )
