"""Every field of the messages that define an app, and what this server does with it.

A field that is not listed here, such as one of a newer client, is refused. The reference page about
the fields is made of this table, and a test demands an entry for each field of the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from grpclib import GRPCError, Status

from modal_emulator.rpc.rpc import Message

# an option without spaces is the name of something
_NAME = re.compile(r"\S+")


class Treatment(Enum):
    """What the server does with a field that is set."""

    USED = "used"
    WARNED = "recorded, with a warning at the client"
    REFUSED = "refused"


@dataclass(frozen=True)
class Field:
    """How a field is treated; `option` is what a user writes to set it."""

    treatment: Treatment
    option: str = ""
    note: str = ""

    @property
    def in_words(self) -> str:
        """The option as part of a sentence, with what there is to say about it."""
        name = f"`{self.option}`" if _NAME.fullmatch(self.option) else self.option
        return f"{name} ({self.note})" if self.note else name


def _used(names: str, note: str = "") -> dict[str, Field]:
    return dict.fromkeys(names.split(), Field(Treatment.USED, note=note))


def _warned(name: str, option: str, note: str = "") -> dict[str, Field]:
    return {name: Field(Treatment.WARNED, option, note)}


def _refused(name: str, option: str, note: str = "") -> dict[str, Field]:
    return {name: Field(Treatment.REFUSED, option, note)}


def _never_sent(names: str) -> dict[str, Field]:
    """Fields that no supported client sends, so that nothing is known about their effect."""
    note = "no client of a supported version sends it"
    return {name: Field(Treatment.REFUSED, name, note) for name in names.split()}


_COPY = "a copy of the same setting in `autoscaler_settings`"
_BY_SERVER = "set by servers, not by clients"
_CONFIG = "a setting of the client for Modal's own staff"
_SANDBOX = "of modal.Sandbox, not of `modal shell`"


def _of_sandboxes(names: str) -> dict[str, Field]:
    return {name: Field(Treatment.REFUSED, name, _SANDBOX) for name in names.split()}


# fields that Function and FunctionData have in common
_SHARED = {
    **_used("module_name function_name implementation_name function_type"),
    **_used("timeout_secs startup_timeout_secs autoscaler_settings"),
    **_used("is_class is_method class_parameter_info method_definitions method_definitions_set"),
    **_used("function_schema supported_input_formats supported_output_formats"),
    **_used("warm_pool_size concurrency_limit task_idle_timeout_secs", _COPY),
    **_used("_experimental_buffer_containers", _COPY),
    **_used("untrusted", "`restrict_modal_access`: the container gets no other Modal object"),
    **_used("webhook_config"),
    **_warned("schedule", "schedule", "it fires on demand: modal-emulator tick"),
    **_warned("worker_id", "MODAL_WORKER_ID", _CONFIG),
    **_warned("snapshot_debug", "MODAL_SNAPSHOT_DEBUG", _CONFIG),
    **_warned("runtime_perf_record", "MODAL_RUNTIME_PERF_RECORD", _CONFIG),
    **_warned("experimental_options", "experimental_options"),
    **_warned("routing_region", "routing_region"),
    **_used("_experimental_group_size", "`@modal.clustered`: so many containers run each input"),
    **_refused("_experimental_fabric_size", "fabric_size"),
    **_refused("http_config", "@modal.http_server or @app.server"),
    **_refused("is_server", "@app.server"),
    **_refused("is_sessioned", "@modal.sessioned"),
    **_never_sent("_experimental_custom_scaling _experimental_enable_gpu_snapshot"),
    **_refused("web_url", "web_url", _BY_SERVER),
    **_refused("web_url_info", "web_url_info", _BY_SERVER),
    **_refused("custom_domain_info", "custom_domain_info", _BY_SERVER),
    **_refused("flash_service_urls", "flash_service_urls", _BY_SERVER),
    **_refused("flash_service_label", "flash_service_label", _BY_SERVER),
}

FIELDS: dict[str, dict[str, Field]] = {
    "Function": {
        **_SHARED,
        **_used("function_serialized class_serialized definition_type app_name"),
        **_used("image_id mount_ids secret_ids volume_mounts object_dependencies"),
        **_used("resources scheduler_placement retry_policy"),
        **_used("max_concurrent_inputs target_concurrent_inputs batch_max_size batch_linger_ms"),
        **_used("single_use_containers max_inputs"),
        **_used("is_builder_function is_auto_snapshot", "a step of an image, which is recorded"),
        **_used("_experimental_concurrent_cancellations", "every client sets it"),
        **_used("mount_client_dependencies", "the packages are those of this Python"),
        **_warned("pty_info", "modal run --interactive", "a container has no terminal"),
        **_warned("runtime", "MODAL_FUNCTION_RUNTIME", _CONFIG),
        **_warned("runtime_debug", "MODAL_FUNCTION_RUNTIME_DEBUG", _CONFIG),
        **_warned("checkpointing_enabled", "enable_memory_snapshot"),
        **_warned("enable_gpu_snapshot", "enable_gpu_snapshot"),
        **_warned("block_network", "block_network"),
        **_warned("network_access", "network_access"),
        **_used("i6pn_enabled", "an address of this machine's loopback interface; on Linux"),
        **_warned("cloud_provider_str", "cloud"),
        **_refused("cloud_bucket_mounts", "modal.CloudBucketMount"),
        **_refused("shared_volume_mounts", "modal.NetworkFileSystem"),
        **_refused("proxy_id", "proxy"),
        **_never_sent("rate_limit cloud_provider is_checkpointing_function checkpoint s3_mounts"),
        **_never_sent("_experimental_task_templates_enabled _experimental_task_templates"),
    },
    "FunctionData": {**_SHARED, **_used("ranked_functions")},
    "RankedFunction": _used("rank function"),
    "FunctionOptions": {
        **_used("secret_ids replace_secret_ids volume_mounts replace_volume_mounts mount_ids"),
        **_used("resources retry_policy timeout_secs scheduler_placement"),
        **_used("concurrency_limit buffer_containers task_idle_timeout_secs warm_pool_size"),
        **_used("max_concurrent_inputs target_concurrent_inputs batch_max_size batch_linger_ms"),
        **_used("replace_cloud_bucket_mounts", "there are none to replace"),
        **_never_sent("pinned_app_version"),
        **_warned("cloud_provider_str", "cloud"),
        **_warned("routing_region", "routing_region"),
        **_refused("cloud_bucket_mounts", "modal.CloudBucketMount"),
    },
    "Resources": {
        **_used("milli_cpu memory_mb gpu_config", "checked, and read in tests"),
        **_used("memory_mb_max", "a container that uses more is killed"),
        **_used("skip_num_threads_env_vars"),
        **_used("milli_cpu_max", "that many of this machine's cores, rounded up; on Linux"),
        **_warned("ephemeral_disk_mb", "ephemeral_disk", "the disk is this machine's"),
        **_warned("rdma", "rdma", "the containers of a cluster are connected by loopback"),
    },
    "GPUConfig": {**_used("gpu_type count"), **_never_sent("type")},
    "SchedulerPlacement": {
        **_used("nonpreemptible", "no fault preempts it; refused with a GPU, as by Modal"),
        **_warned("regions", "region"),
        **_warned("_zone", "zone"),
        **_warned("_lifecycle", "spot"),
        **_warned("_instance_types", "instance_type"),
    },
    "AutoscalerSettings": {
        **_used("min_containers max_containers buffer_containers scaledown_window"),
        **_warned("scaleup_window", "scaleup_window"),
        **_warned("target_concurrency", "target_inputs", "of a server"),
        **_warned("target_concurrency_float", "target_inputs", "of a server"),
        **_never_sent("scaledown_rate_limit"),
    },
    "FunctionRetryPolicy": _used("retries backoff_coefficient initial_delay_ms max_delay_ms"),
    "VolumeMount": _used("volume_id mount_path allow_background_commits read_only sub_path"),
    "MethodDefinition": {
        **_used("function_name function_type function_schema"),
        **_used("webhook_config"),
        **_used("supported_input_formats supported_output_formats"),
        **_refused("web_url", "web_url", _BY_SERVER),
        **_refused("web_url_info", "web_url_info", _BY_SERVER),
        **_refused("custom_domain_info", "custom_domain_info", _BY_SERVER),
    },
    "WebhookConfig": {
        **_used("type method web_server_port web_server_startup_timeout"),
        **_used("async_mode", "no client of a supported version sets it otherwise"),
        **_used("web_endpoint_docs requires_proxy_auth"),
        **_used("ephemeral_suffix", "the endpoints of each run have ports of their own"),
        **_warned("requested_suffix", "label", "endpoints are on 127.0.0.1"),
        **_warned("custom_domains", "custom_domains", "endpoints are on 127.0.0.1"),
    },
    "Schedule": {**_used("cron"), **_used("period", "`modal-emulator tick` calls the function")},
    "Cron": _used("cron_string timezone", "checked; `modal-emulator tick` calls the function"),
    "Period": _used(
        "years months weeks days hours minutes seconds",
        "recorded; `modal-emulator tick` calls the function",
    ),
    "FunctionCreateRequest": {
        **_used("function function_data app_id existing_function_id"),
        **_never_sent("schedule"),
    },
    "ClassCreateRequest": {
        **_used("app_id existing_class_id"),
        **_used("only_class_function", "every client sets it"),
        **_never_sent("methods"),
    },
    "SecretGetOrCreateRequest": _used(
        "deployment_name environment_name object_creation_type env_dict app_id required_keys"
    ),
    "Image": {
        **_used("base_images dockerfile_commands context_files context_mount_id"),
        **_used("build_function", "run where images are built, otherwise a warning"),
        **_used("build_args", "values of ARG; one that no ARG declares is a warning"),
        **_used("secret_ids", "variables of the steps"),
        **_warned("gpu_config", "gpu of an image"),
        **_warned("volume_mounts", "volumes of an image"),
        **_warned("image_registry_config", "a private registry"),
        **_warned("arch", "arch"),
        **_warned("runtime", "MODAL_FUNCTION_RUNTIME", _CONFIG),
        **_warned("runtime_debug", "MODAL_FUNCTION_RUNTIME_DEBUG", _CONFIG),
        **_never_sent("version build_function_def build_function_globals"),
    },
    "BuildFunction": {
        **_used("definition input"),
        **_used("globals", "part of what tells one image from another"),
    },
    "BaseImage": {**_used("image_id"), **_used("docker_tag", "a name inside the commands")},
    "ImageContextFile": _used("filename data"),
    "SandboxCreateRequest": {
        **_used("app_id definition"),
        **_used("environment_name", "it is that of the app"),
        **_of_sandboxes("tags"),
    },
    "SandboxCreateV2Request": {
        **_used("app_id definition secret_sources ephemeral_secrets"),
        **_of_sandboxes("tags cloud_bucket_mount_credentials"),
    },
    "Sandbox": {
        **_used("entrypoint_args image_id mount_ids secret_ids volume_mounts"),
        **_used("resources timeout_secs scheduler_placement"),
        **_used("network_access", "every client leaves it open for `modal shell`"),
        **_warned("cloud_provider_str", "--cloud"),
        **_warned("runtime", "--runtime"),
        **_warned("runtime_debug", "MODAL_FUNCTION_RUNTIME_DEBUG", _CONFIG),
        **_warned("worker_id", "MODAL_WORKER_ID", _CONFIG),
        **_warned("experimental_options_v2", "--experimental-option"),
        **_refused("nfs_mounts", "modal.NetworkFileSystem"),
        **_refused("cloud_bucket_mounts", "modal.CloudBucketMount"),
        **_refused("proxy_id", "proxy"),
        **_of_sandboxes("workdir pty_info open_ports i6pn_enabled enable_snapshot verbose name"),
        **_of_sandboxes("idle_timeout_secs custom_domain include_oidc_identity_token"),
        **_of_sandboxes("readiness_probe inbound_cidr_allowlist environment_variables"),
        **_of_sandboxes("experimental_outbound_policy outbound_policy include_x509_svid"),
        **_never_sent("cloud_provider block_network s3_mounts snapshot_version"),
        **_never_sent("runsc_runtime_version experimental_options preload_path_prefixes"),
        **_never_sent("direct_sandbox_commands_enabled _restore_instance_type"),
    },
    "StringMap": _used("contents"),
    "SecretSource": _used("secret_id env"),
    "NetworkAccess": {
        **_used("network_access_type", "every client leaves it open for `modal shell`"),
        **_of_sandboxes("allowed_cidrs allowed_domains"),
    },
    "TaskExecStartRequest": {
        **_used("task_id exec_id command_args timeout_secs workdir pty_info"),
        **_used("stdout_config stderr_config", "a pipe"),
        **_refused("runtime_debug", "MODAL_FUNCTION_RUNTIME_DEBUG", _CONFIG),
        **_of_sandboxes("secret_ids container_id env secret_sources"),
    },
    "PTYInfo": {
        **_used("winsz_rows winsz_cols"),
        **_used("env_term env_colorterm env_term_program", "variables of the command"),
        **_used("enabled pty_type no_terminate_on_idle_stdin", "every client sets them alike"),
    },
}


def unused_fields(message: Message) -> Iterator[Field]:
    """Yield what is set in a message, and in the messages inside of it, but not used here."""
    known = FIELDS[message.DESCRIPTOR.name]
    for descriptor, value in message.ListFields():
        if not _is_set(value):
            continue
        field = known.get(descriptor.name) or Field(
            Treatment.REFUSED, descriptor.name, "this server does not implement the field"
        )
        if field.treatment is not Treatment.USED:
            yield field
            continue
        for inner in _messages_in(value):
            if inner.DESCRIPTOR.name in FIELDS:
                yield from unused_fields(inner)


def warnings(messages: Iterable[Message]) -> list[str]:
    """Return in words what is recorded only."""
    return _in_words(messages, Treatment.WARNED)


def refusals(messages: Iterable[Message]) -> list[str]:
    """Return in words what is refused."""
    return _in_words(messages, Treatment.REFUSED)


def refuse(name: str, messages: Iterable[Message]) -> None:
    """Refuse messages in which something is set that is not emulated.

    Raises:
        GRPCError: If something is (UNIMPLEMENTED).
    """
    if found := refusals(messages):
        raise not_emulated(name, found)


def not_emulated(name: str, options: Iterable[str]) -> GRPCError:
    """Return the error for the use of what is not emulated."""
    return GRPCError(
        Status.UNIMPLEMENTED,
        f"{name} uses {', '.join(options)}, which the emulator does not emulate.",
    )


def _in_words(messages: Iterable[Message], treatment: Treatment) -> list[str]:
    found = (each for message in messages for each in unused_fields(message))
    return list(dict.fromkeys(each.in_words for each in found if each.treatment is treatment))


def _is_set(value: Any) -> bool:
    """Return whether a value says anything: a copied message can be there and empty."""
    return bool(value.ListFields()) if hasattr(value, "ListFields") else True


def _messages_in(value: Any) -> list[Message]:
    if isinstance(value, Mapping):
        value = list(value.values())
    values = value if isinstance(value, Sequence) else [value]
    return [each for each in values if hasattr(each, "ListFields")]
