"""Applies `with_options` to a function."""

from __future__ import annotations

from typing import Any

from modal_proto import api_pb2


def apply_options(function: Any, options: Any) -> Any:
    """Return a copy of a `Function` message, changed as a `FunctionOptions` message says."""
    changed = api_pb2.Function()
    changed.CopyFrom(function)
    if options.replace_secret_ids:
        del changed.secret_ids[:]
        changed.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        del changed.volume_mounts[:]
        changed.volume_mounts.extend(options.volume_mounts)
    if options.HasField("resources"):
        _apply_resources(changed.resources, options.resources)
    if options.HasField("retry_policy"):
        changed.retry_policy.CopyFrom(options.retry_policy)
    if options.HasField("scheduler_placement"):
        changed.scheduler_placement.CopyFrom(options.scheduler_placement)
    for source, target in (
        ("timeout_secs", "timeout_secs"),
        ("max_concurrent_inputs", "max_concurrent_inputs"),
        ("target_concurrent_inputs", "target_concurrent_inputs"),
        ("batch_max_size", "batch_max_size"),
        ("batch_linger_ms", "batch_linger_ms"),
        ("cloud_provider_str", "cloud_provider_str"),
    ):
        if options.HasField(source):
            setattr(changed, target, getattr(options, source))
    for source, target in (
        ("concurrency_limit", "max_containers"),
        ("buffer_containers", "buffer_containers"),
        ("task_idle_timeout_secs", "scaledown_window"),
        ("warm_pool_size", "min_containers"),
    ):
        if options.HasField(source):
            setattr(changed.autoscaler_settings, target, getattr(options, source))
    return changed


def _apply_resources(resources: Any, changes: Any) -> None:
    if changes.milli_cpu:
        resources.milli_cpu, resources.milli_cpu_max = changes.milli_cpu, changes.milli_cpu_max
    if changes.memory_mb:
        resources.memory_mb, resources.memory_mb_max = changes.memory_mb, changes.memory_mb_max
    if changes.ephemeral_disk_mb:
        resources.ephemeral_disk_mb = changes.ephemeral_disk_mb
    if changes.gpu_config.count or changes.gpu_config.gpu_type:
        resources.gpu_config.CopyFrom(changes.gpu_config)
