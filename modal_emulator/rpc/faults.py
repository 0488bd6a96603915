"""Faults that a test injects: what goes wrong, and when."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from grpclib import GRPCError, Status

from modal_emulator.rpc import gpus

RPC_STATUSES = tuple(status.name for status in Status if status is not Status.OK)

InputFaultKind = Literal["preempt", "kill"]


@dataclass(frozen=True)
class RpcFault:
    """Fails the n-th call of an RPC, counted from the creation of the fault."""

    name: str
    nth: int = 1
    status: str = "UNAVAILABLE"


@dataclass(frozen=True)
class InputFault:
    """Preempts or kills the container that gets the n-th input, counted from the creation."""

    kind: InputFaultKind
    nth: int = 1
    after_s: float = 0.0
    grace_s: float = 30.0


def check_whole_number(what: str, value: object, *, minimum: int = 0) -> int:
    """Return an argument of a fault that has to be a whole number.

    Raises:
        ValueError: If it isn't one, or is too small.
    """
    # True is an int in Python
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{what} is a whole number of {minimum} or more, not {value!r}.")
    return value


def check_seconds(what: str, value: object) -> float:
    """Return an argument of a fault that has to be a time.

    Raises:
        ValueError: If it isn't a number of 0 or more.
    """
    # Python's JSON has an Infinity, which no timer takes
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{what} is a number of 0 seconds or more, not {value!r}.")
    return value


class Faults:
    """The faults that are active now; read at the places where they have an effect."""

    def __init__(self) -> None:
        self.start_delay_s = 0.0
        self.image_build_error: str | None = None
        self._gpu_capacity: dict[str, int] = {}
        self._rpc_faults: list[tuple[RpcFault, int]] = []
        self._rpc_calls: Counter[str] = Counter()
        self._rpc_delays: dict[str, float] = {}
        self._input_faults: list[tuple[InputFault, int]] = []
        self._inputs_started = 0

    def fail_rpc(self, fault: RpcFault) -> None:
        """Add a fault of an RPC.

        Raises:
            ValueError: If the status is unknown, or `nth` is not a whole number of 1 or more.
        """
        if fault.status not in RPC_STATUSES:
            known = ", ".join(RPC_STATUSES)
            raise ValueError(f'"{fault.status}" is not a gRPC status. Known: {known}.')
        check_whole_number("The calls of an RPC", fault.nth, minimum=1)
        self._rpc_faults.append((fault, self._rpc_calls[fault.name] + fault.nth))

    def delay_rpc(self, name: str, seconds: float) -> None:
        """Delay every call of an RPC.

        Raises:
            ValueError: If the time is not a number of 0 or more.
        """
        self._rpc_delays[name] = check_seconds("An RPC's delay", seconds)

    def add_input_fault(self, fault: InputFault) -> None:
        """Add a preemption or a kill of a container.

        Raises:
            ValueError: If `nth` is not a whole number of 1 or more, or a time is not a number of 0
                or more.
        """
        check_whole_number("The place of an input", fault.nth, minimum=1)
        check_seconds("The time until a fault", fault.after_s)
        check_seconds("A preemption's grace", fault.grace_s)
        self._input_faults.append((fault, self._inputs_started + fault.nth))

    def limit_gpu(self, name: str, count: int | None) -> None:
        """Set how many GPUs of a type there are; None is without limit.

        Raises:
            UnknownGpuError: If Modal does not offer the type.
            ValueError: If the count is not a whole number of 0 or more.
        """
        device = gpus.device_of(gpus.check_name(name))
        if device == "ANY":
            raise ValueError("any is not one type of GPU: limit L4, A10 and T4.")
        if count is None:
            self._gpu_capacity.pop(device, None)
            return
        self._gpu_capacity[device] = check_whole_number("A GPU capacity", count)

    def gpu_capacity(self, device: str) -> int | None:
        """Return how many GPUs of a type there are, or None if there is no limit."""
        return self._gpu_capacity.get(device)

    async def before_rpc(self, name: str) -> None:
        """Delay or fail a call of an RPC if there is a fault for it.

        Raises:
            GRPCError: If there is a fault, with its status.
        """
        self._rpc_calls[name] += 1
        if name in self._rpc_delays:
            await asyncio.sleep(self._rpc_delays[name])
        for entry in self._rpc_faults:
            fault, at = entry
            if fault.name == name and at == self._rpc_calls[name]:
                self._rpc_faults.remove(entry)
                raise GRPCError(
                    Status[fault.status], f"{name} failed on demand (call {at}, {fault.status})"
                )

    def next_input(self) -> InputFault | None:
        """Count an input that a container gets, and return the fault for it if there is one."""
        self._inputs_started += 1
        for entry in self._input_faults:
            fault, at = entry
            if at == self._inputs_started:
                self._input_faults.remove(entry)
                return fault
        return None

    def clear(self) -> None:
        """Remove every fault."""
        self.start_delay_s = 0.0
        self.image_build_error = None
        self._gpu_capacity.clear()
        self._rpc_faults.clear()
        self._rpc_delays.clear()
        self._input_faults.clear()
