"""What `Emulator.functions()`, `calls()`, `containers()` and `apps()` return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VolumeUse:
    """A volume as a function mounts it."""

    name: str
    volume_id: str
    read_only: bool
    sub_path: str


@dataclass(frozen=True)
class SecretUse:
    """A secret as a function uses it, without its values."""

    name: str
    secret_id: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class FunctionInfo:
    """A function or a variant of one, as the server received it.

    `gpus` are in the order of preference, such as `H100:2`. `cpu` (in cores) and `memory_mb` (in
    MiB) are the request and the limit, or None. A variant has a `base_function_id`.
    """

    function_id: str
    base_function_id: str
    app_id: str
    app_name: str
    name: str
    module: str
    is_class: bool
    gpus: tuple[str, ...]
    cpu: tuple[float, float | None] | None
    memory_mb: tuple[int, int | None] | None
    ephemeral_disk_mb: int | None
    timeout_s: int
    startup_timeout_s: int
    retries: int
    secrets: tuple[SecretUse, ...]
    volumes: dict[str, VolumeUse]
    image_id: str
    mount_ids: tuple[str, ...]
    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window_s: int | None
    max_concurrent_inputs: int
    batch_max_size: int
    single_use_containers: bool
    regions: tuple[str, ...]
    schedule: str


@dataclass(frozen=True)
class InputInfo:
    """An input of a call; `status` is empty while it waits or runs.

    `attempts` counts retries, `starts` also reruns after a preemption.
    """

    input_id: str
    idx: int
    status: str
    attempts: int
    starts: int
    task_id: str
    started_at: float
    finished_at: float


@dataclass(frozen=True)
class CallInfo:
    """A function call with its inputs."""

    call_id: str
    function_id: str
    function_name: str
    app_id: str
    parent_input_id: str
    created_at: float
    inputs: tuple[InputInfo, ...]


@dataclass(frozen=True)
class ContainerInfo:
    """A container, running or ended; `gpu` is the type of GPU that it has.

    It is billed from `started_at` to `ended_at`; either is 0 as long as it is not over.
    """

    task_id: str
    function_id: str
    function_name: str
    app_id: str
    state: str
    end_reason: str
    gpu: str
    gpu_count: int
    pid: int
    inputs_taken: int
    running_input_ids: tuple[str, ...]
    created_at: float
    started_at: float
    ended_at: float


@dataclass(frozen=True)
class AppInfo:
    """An app; `state` is Modal's name of the state in lower case, such as `deployed`."""

    app_id: str
    name: str
    description: str
    environment: str
    state: str
    version: int
    tags: dict[str, str]
    function_ids: dict[str, str]
    class_ids: dict[str, str]
