"""Checks what a function requests; what is not emulated is refused rather than ignored."""

from __future__ import annotations

from typing import Any

from grpclib import GRPCError, Status

from modal_emulator.apps.functions import web_methods
from modal_emulator.rpc.gpus import GpuRequest, UnknownGpuError, requested_gpu

_MAX_TIMEOUT_S = 24 * 3600
# The service has maxima as well, but https://modal.com/docs/guide/resources has no numbers, so
# these are the emulator's own.
_MAX_CORES = 64
_MAX_MEMORY_MIB = 1 << 20

_REFUSED = {
    "cloud_bucket_mounts": "cloud bucket mounts",
    "shared_volume_mounts": "network file systems",
    "proxy_id": "proxies",
    "is_server": "servers",
    "_experimental_group_size": "clustered functions",
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
    """Check how much CPU and memory is requested.

    The upper limits, which can be set beside the requests, are not checked by the service either.

    Raises:
        GRPCError: If it is more than 64 cores or 1 TiB (INVALID_ARGUMENT).
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


def check_features(function: Any) -> None:
    """Check that a function uses only features that are emulated.

    Raises:
        GRPCError: If it uses another one (UNIMPLEMENTED).
    """
    for field, feature in _REFUSED.items():
        if getattr(function, field):
            raise GRPCError(
                Status.UNIMPLEMENTED,
                f"{function.function_name} uses {feature}, which the emulator does not emulate.",
            )
    if function.HasField("http_config"):
        raise GRPCError(
            Status.UNIMPLEMENTED,
            f"{function.function_name} is an HTTP server (http_server), which the emulator does "
            "not emulate; it serves modal.web_server.",
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


def ignored_options(function: Any) -> list[str]:
    """Return the options of a function that are recorded for tests but have no effect."""
    ignored = []
    if function.schedule.WhichOneof("schedule_oneof"):
        ignored.append("schedule (call the function yourself)")
    if function.scheduler_placement.regions:
        ignored.append("region")
    if function.cloud_provider_str:
        ignored.append("cloud")
    if function.checkpointing_enabled:
        ignored.append("enable_memory_snapshot")
    if function.block_network:
        ignored.append("block_network")
    web = web_methods(function).values()
    if any(each.custom_domains for each in web):
        ignored.append("custom_domains (endpoints are on 127.0.0.1)")
    if any(each.requested_suffix for each in web):
        ignored.append("label (endpoints are on 127.0.0.1)")
    return ignored
