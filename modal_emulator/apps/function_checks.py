"""What a function may ask for here; the rest is refused rather than ignored."""

from __future__ import annotations

from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.rpc.gpus import GpuRequest, UnknownGpuError, requested_gpu

_LONGEST_TIMEOUT_S = 24 * 3600
# The service has a maximum as well, and documents that it refuses more, but not how much it is:
# https://modal.com/docs/guide/resources. These are the emulator's own.
_MOST_CORES = 64
_MOST_MEMORY_MIB = 1 << 20

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
        GRPCError: INVALID_ARGUMENT for a name or count that Modal does not offer.
    """
    try:
        return requested_gpu(gpu_config)
    except UnknownGpuError as e:
        raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e


def check_requests(resources: Any) -> None:
    """Refuse to reserve more CPU or memory than a machine has.

    The limits beside the requests are not checked: the service caps what they allow.

    Raises:
        GRPCError: INVALID_ARGUMENT for more than 64 cores or 1 TiB.
    """
    if resources.milli_cpu > _MOST_CORES * 1000:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"cpu={resources.milli_cpu / 1000:.10g} asks for too much; the emulator accepts "
            f"requests of up to {_MOST_CORES} cores.",
        )
    if resources.memory_mb > _MOST_MEMORY_MIB:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"memory={resources.memory_mb} asks for too much; the emulator accepts "
            f"requests of up to {_MOST_MEMORY_MIB} MiB (1 TiB).",
        )


def refuse_what_is_not_emulated(function: Any) -> None:
    """Refuse a feature rather than ignore it.

    Raises:
        GRPCError: UNIMPLEMENTED, naming the feature.
    """
    for field, feature in _REFUSED.items():
        if getattr(function, field):
            raise GRPCError(
                Status.UNIMPLEMENTED,
                f"{function.function_name} uses {feature}, which the emulator does not emulate.",
            )
    webhooks = [function.webhook_config.type] + [
        method.webhook_config.type for method in function.method_definitions.values()
    ]
    if any(kind != api_pb2.WEBHOOK_TYPE_UNSPECIFIED for kind in webhooks):
        raise GRPCError(
            Status.UNIMPLEMENTED,
            f"{function.function_name} is a web endpoint, which the emulator does not emulate.",
        )


def check_timeout(name: str, seconds: int) -> None:
    """Refuse what Modal does not offer.

    Raises:
        GRPCError: INVALID_ARGUMENT for less than a second or more than a day.
    """
    if not 1 <= seconds <= _LONGEST_TIMEOUT_S:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"{name}={seconds} is not possible; Modal offers 1 to {_LONGEST_TIMEOUT_S} seconds.",
        )


def recorded_only(function: Any) -> list[str]:
    """Return what is recorded for tests to read but has no effect here."""
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
    return ignored
