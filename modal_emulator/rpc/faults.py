"""Faults on demand: what goes wrong, when, and how often."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from grpclib import GRPCError, Status

from modal_emulator.rpc import gpus

# What a client may see: retried by the modal client, or not.
RPC_STATUSES = tuple(status.name for status in Status if status is not Status.OK)

InputFaultKind = Literal["preempt", "kill"]


@dataclass(frozen=True)
class RpcFault:
    """Fails the n-th call (counted from the fault's creation) of an RPC."""

    name: str
    nth: int = 1
    status: str = "UNAVAILABLE"


@dataclass(frozen=True)
class InputFault:
    """Preempts or kills the container that runs the n-th input handed out from now on."""

    kind: InputFaultKind
    nth: int = 1
    after_s: float = 0.0
    grace_s: float = 30.0


def check_whole_number(what: str, value: object, *, least: int = 0) -> int:
    """Return an argument of a fault that has to be a whole number.

    Raises:
        ValueError: when it isn't one, or is too small.
    """
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} is a whole number of {least} or more, not {value!r}.")
    return value


def check_seconds(what: str, value: object) -> float:
    """Return an argument of a fault that has to be a time.

    Raises:
        ValueError: when it isn't a number of 0 or more.
    """
    # JSON has an Infinity to Python, but no timer takes it.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{what} is a number of 0 seconds or more, not {value!r}.")
    return value


class Faults:
    """The faults that are armed now; services ask it at the places where faults happen."""

    def __init__(self) -> None:
        self.start_delay_s = 0.0
        self.image_build_error: str | None = None
        self._gpu_capacity: dict[str, int] = {}
        self._rpc_faults: list[tuple[RpcFault, int]] = []
        self._rpc_calls: Counter[str] = Counter()
        self._rpc_delays: dict[str, float] = {}
        self._input_faults: list[tuple[InputFault, int]] = []
        self._inputs_handed_out = 0

    def fail_rpc(self, fault: RpcFault) -> None:
        """Arm a failing RPC.

        Raises:
            ValueError: for an unknown status, or an ordinal that is not a whole number from 1.
        """
        if fault.status not in RPC_STATUSES:
            known = ", ".join(RPC_STATUSES)
            raise ValueError(f'"{fault.status}" is not a gRPC status. Known: {known}.')
        check_whole_number("The calls of an RPC", fault.nth, least=1)
        self._rpc_faults.append((fault, self._rpc_calls[fault.name] + fault.nth))

    def delay_rpc(self, name: str, seconds: float) -> None:
        """Let every call of an RPC take so much longer.

        Raises:
            ValueError: for a time that is not a number of 0 or more.
        """
        self._rpc_delays[name] = check_seconds("An RPC's delay", seconds)

    def disturb_input(self, fault: InputFault) -> None:
        """Arm a preemption or a kill of the container that gets the n-th input from now.

        Raises:
            ValueError: for an ordinal that is not a whole number from 1, or a time that is not a
                number of 0 or more.
        """
        check_whole_number("The place of an input", fault.nth, least=1)
        check_seconds("The time until a fault", fault.after_s)
        check_seconds("A preemption's grace", fault.grace_s)
        self._input_faults.append((fault, self._inputs_handed_out + fault.nth))

    def limit_gpu(self, name: str, count: int | None) -> None:
        """Set how many GPUs of a type there are; None is without limit.

        Raises:
            UnknownGpuError: for a name that Modal does not offer.
            ValueError: for a count that is not a whole number of 0 or more.
        """
        device = gpus.device_of(gpus.check_name(name))
        if count is None:
            self._gpu_capacity.pop(device, None)
            return
        self._gpu_capacity[device] = check_whole_number("A GPU capacity", count)

    def gpu_capacity(self, device: str) -> int | None:
        """Return how many GPUs of a device exist, or None for no limit."""
        return self._gpu_capacity.get(device)

    async def before_rpc(self, name: str) -> None:
        """Delay or fail this call when a fault is armed for it.

        Raises:
            GRPCError: with the armed status.
        """
        self._rpc_calls[name] += 1
        if name in self._rpc_delays:
            await asyncio.sleep(self._rpc_delays[name])
        for armed in self._rpc_faults:
            fault, at = armed
            if fault.name == name and at == self._rpc_calls[name]:
                self._rpc_faults.remove(armed)
                raise GRPCError(
                    Status[fault.status], f"{name} failed on demand (call {at}, {fault.status})"
                )

    def next_input(self) -> InputFault | None:
        """Count an input as handed out and return the fault armed for it."""
        self._inputs_handed_out += 1
        for armed in self._input_faults:
            fault, at = armed
            if at == self._inputs_handed_out:
                self._input_faults.remove(armed)
                return fault
        return None

    def clear(self) -> None:
        """Disarm everything."""
        self.start_delay_s = 0.0
        self.image_build_error = None
        self._gpu_capacity.clear()
        self._rpc_faults.clear()
        self._rpc_delays.clear()
        self._input_faults.clear()
