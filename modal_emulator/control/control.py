"""Control of a running server: its state, and faults."""

from __future__ import annotations

from dataclasses import dataclass

from modal_emulator.containers.container import Container
from modal_emulator.control.state_reader import StateReader
from modal_emulator.rpc.faults import (
    Faults,
    InputFault,
    RpcFault,
    check_seconds,
    check_whole_number,
)
from modal_emulator.rpc.rpc import rpc_names
from modal_emulator.scheduling.autoscaler import Autoscaler
from modal_emulator.scheduling.scheduler import Scheduler
from modal_emulator.scheduling.termination import Termination
from modal_emulator.volumes.limit import VolumeLimit


class ContainerNotFoundError(LookupError):
    """Raised when there is no container to preempt or kill."""


@dataclass(frozen=True)
class Control(StateReader):
    """Everything that a test can do with a server; used in the server's thread."""

    _faults: Faults
    _termination: Termination
    _autoscaler: Autoscaler
    _scheduler: Scheduler

    def _targets(self, task_id: str | None) -> list[Container]:
        if task_id is not None:
            container = self._pools.container(task_id)
            found = [container] if container else []
        else:
            found = [each for each in self._pools.containers() if each.running]
        if not found:
            which = f"container {task_id}" if task_id else "container that runs an input"
            raise ContainerNotFoundError(f"There is no {which}.")
        return found

    def tick(self, function_name: str | None = None) -> list[str]:
        """Call the functions that have a schedule, as if it was due; no clock does.

        Args:
            function_name: Only the function of this name.

        Returns:
            The ids of the calls.

        Raises:
            LookupError: If no running app has such a function.
        """
        due = [
            function
            for app in self._apps.all()
            if app.running
            for function in map(self._functions.runnable, app.function_ids.values())
            if function.first.schedule.WhichOneof("schedule_oneof")
            and function_name in (None, function.name)
        ]
        if not due:
            which = f"function {function_name}" if function_name else "function"
            raise LookupError(f"No running app has a {which} with a schedule.")
        return [self._scheduler.call_without_arguments(each) for each in due]

    def age_results(self, seconds: float) -> None:
        """Let the results that calls have by now count as older; they expire after 7 days.

        Raises:
            ValueError: If the time is not a number of 0 or more.
        """
        self._calls.age(check_seconds("The age of results", seconds))

    def preempt(self, task_id: str | None = None, *, grace_s: float = 30.0) -> list[str]:
        """Preempt a container: SIGINT, then SIGKILL; its inputs run again elsewhere.

        Args:
            task_id: The container; by default all that run an input.
            grace_s: The time between SIGINT and SIGKILL.

        Returns:
            The task ids of the preempted containers.

        Raises:
            ContainerNotFoundError: If there is no such container.
            ValueError: If `grace_s` is not a number of 0 or more.
        """
        check_seconds("A preemption's grace", grace_s)
        found = self._targets(task_id)
        for container in found:
            self._termination.preempt(container, grace_s)
        return [container.task_id for container in found]

    def kill(self, task_id: str | None = None) -> list[str]:
        """Kill a container, as a crash would; its inputs run again.

        Args:
            task_id: The container; by default all that run an input.

        Returns:
            The task ids of the killed containers.

        Raises:
            ContainerNotFoundError: If there is no such container.
        """
        found = self._targets(task_id)
        for container in found:
            self._termination.kill(container)
        return [container.task_id for container in found]

    def preempt_input(self, nth: int = 1, *, after_s: float = 0.0, grace_s: float = 30.0) -> None:
        """Preempt the container that gets the n-th input from now on, `after_s` later."""
        self._faults.add_input_fault(InputFault("preempt", nth, after_s, grace_s))

    def kill_input(self, nth: int = 1, *, after_s: float = 0.0) -> None:
        """Kill the container that gets the n-th input from now on, `after_s` later."""
        self._faults.add_input_fault(InputFault("kill", nth, after_s))

    def delay_starts(self, seconds: float) -> None:
        """Delay the start of every container; 0 ends this fault.

        Raises:
            ValueError: If the time is not a number of 0 or more.
        """
        self._faults.start_delay_s = check_seconds("The delay of a start", seconds)

    def fail_rpc(self, name: str, *, nth: int = 1, status: str = "UNAVAILABLE") -> None:
        """Fail the n-th call of an RPC from now on, with a gRPC status.

        Raises:
            ValueError: If there is no such RPC or status.
        """
        _check_rpc(name)
        self._faults.fail_rpc(RpcFault(name, nth, status))

    def delay_rpc(self, name: str, seconds: float) -> None:
        """Delay every call of an RPC; 0 ends this fault.

        Raises:
            ValueError: If there is no such RPC, or the time is not a number of 0 or more.
        """
        _check_rpc(name)
        self._faults.delay_rpc(name, seconds)

    def fail_image_builds(self, message: str | None) -> None:
        """Fail every image build with a message; None ends this fault."""
        self._faults.image_build_error = message

    def limit_gpu(self, name: str, count: int | None) -> None:
        """Set how many GPUs of a type there are; None is without limit.

        Raises:
            UnknownGpuError: If Modal does not offer the type.
            ValueError: If the count is not a whole number of 0 or more.
        """
        self._faults.limit_gpu(name, count)
        self._autoscaler.scale_all()

    def limit_volume(
        self, name: str, *, max_bytes: int | None = None, max_files: int | None = None
    ) -> None:
        """Limit the size of a volume, which need not exist yet, in containers that start later.

        Raises:
            ValueError: If a limit is not a whole number of 0 or more, or the name no string.
        """
        if not isinstance(name, str):
            raise ValueError(f"A volume's name is a string, not {name!r}.")
        for argument, limit in (("max_bytes", max_bytes), ("max_files", max_files)):
            if limit is not None:
                check_whole_number(f"A volume's {argument}", limit)
        self._volumes.set_limit(name, VolumeLimit(max_bytes, max_files))

    def clear_faults(self) -> None:
        """End all faults."""
        self._faults.clear()
        self._volumes.clear_limits()
        self._autoscaler.scale_all()


def _check_rpc(name: str) -> None:
    if name not in rpc_names():
        raise ValueError(f'"{name}" is not an RPC of the modal client, such as FunctionMap.')
