"""Checks what a function requests."""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import available_timezones

from grpclib import GRPCError, Status

from modal_emulator.rpc.gpus import GpuRequest, UnknownGpuError, requested_gpu

_MAX_TIMEOUT_S = 24 * 3600
# The service has maxima as well, but https://modal.com/docs/guide/resources has no numbers, so
# these are the emulator's own.
_MAX_CORES = 64
_MAX_MEMORY_MIB = 1 << 20

# https://modal.com/docs/guide/resources
_MAX_DISK_MIB = 3_145_728
# minute, hour, day, month, weekday
_CRON_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_CRON_PART = re.compile(r"(?:\*|(\d+|[a-z]{3})(?:-(\d+|[a-z]{3}))?)(?:/[1-9]\d*)?")
# what a container needs to take inputs and return outputs
_RUNS_INPUTS = {
    "ContainerHello",
    "ContainerHeartbeat",
    "FunctionGetInputs",
    "FunctionPutOutputs",
    "TaskResult",
    "TaskCurrentInputs",
    "FunctionCallPutDataOut",
    "FunctionCallGetDataIn",
    "FunctionGetDynamicConcurrency",
    "BlobCreate",
    "BlobGet",
    "VolumeCommit",
}


def check_gpu(gpu_config: Any) -> GpuRequest | None:
    """Return the requested GPU.

    Raises:
        GRPCError: If Modal does not offer the type, or not that many (INVALID_ARGUMENT).
    """
    try:
        return requested_gpu(gpu_config)
    except UnknownGpuError as e:
        raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e


def check_requests(resources: Any) -> None:
    """Check how much CPU, memory and disk is requested.

    The upper limits, which can be set beside the requests, are not checked by the service either.

    Raises:
        GRPCError: If it is more than 64 cores, 1 TiB of memory or 3 TiB of disk
            (INVALID_ARGUMENT).
    """
    if resources.milli_cpu > _MAX_CORES * 1000:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"cpu={resources.milli_cpu / 1000:.10g} asks for too much; the emulator accepts "
            f"requests of up to {_MAX_CORES} cores.",
        )
    if resources.memory_mb > _MAX_MEMORY_MIB:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"memory={resources.memory_mb} asks for too much; the emulator accepts "
            f"requests of up to {_MAX_MEMORY_MIB} MiB (1 TiB).",
        )
    if resources.ephemeral_disk_mb > _MAX_DISK_MIB:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"ephemeral_disk={resources.ephemeral_disk_mb} asks for too much; Modal offers up to "
            f"{_MAX_DISK_MIB} MiB (3 TiB).",
        )


def check_placement(function: Any) -> None:
    """Check that a function that must not be preempted has no GPU.

    Raises:
        GRPCError: If it has one (INVALID_ARGUMENT).
    """
    if function.scheduler_placement.nonpreemptible and function.resources.gpu_config.count:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"{function.function_name} has nonpreemptible=True and a GPU; Modal offers "
            "nonpreemptible for functions without a GPU only.",
        )


def check_timeout(name: str, seconds: int) -> None:
    """Check a timeout.

    Raises:
        GRPCError: If it is less than a second or more than a day (INVALID_ARGUMENT).
    """
    if not 1 <= seconds <= _MAX_TIMEOUT_S:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"{name}={seconds} is not possible; Modal offers 1 to {_MAX_TIMEOUT_S} seconds.",
        )


def check_schedule(schedule: Any) -> None:
    """Check the syntax and the time zone of a cron schedule.

    Raises:
        GRPCError: If one is wrong (INVALID_ARGUMENT).
    """
    if schedule.WhichOneof("schedule_oneof") != "cron":
        return
    cron = schedule.cron
    fields = cron.cron_string.split()
    if len(fields) != len(_CRON_FIELDS) or not all(map(_is_cron_field, fields, _CRON_FIELDS)):
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f'"{cron.cron_string}" is not a cron schedule; it has five fields: minute 0-59, '
            "hour 0-23, day 1-31, month 1-12, weekday 0-7, such as 0 9 * * 1-5.",
        )
    if cron.timezone and cron.timezone not in available_timezones():
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f'"{cron.timezone}" is not a time zone; they are named like Europe/Berlin.',
        )


def _is_cron_field(field: str, limits: tuple[int, int]) -> bool:
    for part in field.lower().split(","):
        match = _CRON_PART.fullmatch(part)
        numbers = match and [int(each) for each in match.group(1, 2) if each and each.isdigit()]
        if numbers is None or not all(limits[0] <= each <= limits[1] for each in numbers):
            return False
    return True


def check_access(function: Any, rpc_name: str) -> None:
    """Check that a container calls nothing that its function's `restrict_modal_access` excludes.

    Raises:
        GRPCError: If it does (PERMISSION_DENIED).
    """
    if function.untrusted and rpc_name not in _RUNS_INPUTS:
        raise GRPCError(
            Status.PERMISSION_DENIED,
            f"{function.function_name} has restrict_modal_access=True, "
            f"so its containers can't use other objects of Modal ({rpc_name}).",
        )
