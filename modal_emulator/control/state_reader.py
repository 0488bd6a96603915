"""Reads the state of a server: functions, calls, containers, apps, images and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpclib import GRPCError
from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.apps.calls import STATUS_NAMES, Call, Calls, Input
from modal_emulator.apps.functions import FunctionRecord, Functions
from modal_emulator.apps.logs import LogLine, Logs
from modal_emulator.containers.container import Container
from modal_emulator.control.info import (
    AppInfo,
    CallInfo,
    ContainerInfo,
    FunctionInfo,
    InputInfo,
    SecretUse,
    VolumeUse,
)
from modal_emulator.objects.image_records import ImageRecord
from modal_emulator.objects.images import ImageService
from modal_emulator.objects.secrets import SecretService
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.volumes.store import VolumeStore


def _pair(first: int, second: int, divisor: int) -> tuple[Any, Any] | None:
    if not first and not second:
        return None
    if divisor == 1:
        return first, second or None
    return first / divisor, second / divisor if second else None


@dataclass(frozen=True)
class StateReader:
    """Reads the state of a server; used in the server's thread."""

    _functions: Functions
    _apps: Apps
    _calls: Calls
    _images: ImageService
    _logs: Logs
    _pools: ContainerPools
    _secrets: SecretService
    _volumes: VolumeStore

    def functions(self, name: str | None = None) -> list[FunctionInfo]:
        """Return the functions and variants, of one name or all, as the server received them."""
        return [
            self._function(record)
            for record in self._functions.all()
            if self._functions.is_defined(record) and name in (None, record.name)
        ]

    def _function(self, record: FunctionRecord) -> FunctionInfo:
        data = self._functions.current_data(record)
        ranked = [entry.function for entry in data.ranked_functions]
        function = ranked[0]
        settings, resources = function.autoscaler_settings, function.resources
        gpus = [each.resources.gpu_config for each in ranked]
        app = self._apps.get(record.app_id)
        return FunctionInfo(
            function_id=record.function_id,
            base_function_id=record.base_id,
            app_id=record.app_id,
            app_name=app.name or app.description,
            name=record.name,
            module=function.module_name,
            is_class=function.is_class,
            gpus=tuple(
                gpu.gpu_type if gpu.count == 1 else f"{gpu.gpu_type}:{gpu.count}"
                for gpu in gpus
                if gpu.count
            ),
            cpu=_pair(resources.milli_cpu, resources.milli_cpu_max, 1000),
            memory_mb=_pair(resources.memory_mb, resources.memory_mb_max, 1),
            ephemeral_disk_mb=resources.ephemeral_disk_mb or None,
            timeout_s=function.timeout_secs,
            startup_timeout_s=function.startup_timeout_secs,
            retries=function.retry_policy.retries,
            secrets=tuple(self._secret(each) for each in function.secret_ids),
            volumes={each.mount_path: self._volume(each) for each in function.volume_mounts},
            image_id=function.image_id,
            mount_ids=tuple(function.mount_ids),
            min_containers=settings.min_containers,
            max_containers=settings.max_containers or None,
            buffer_containers=settings.buffer_containers,
            scaledown_window_s=settings.scaledown_window or None,
            max_concurrent_inputs=function.max_concurrent_inputs or 1,
            batch_max_size=function.batch_max_size,
            single_use_containers=function.single_use_containers,
            regions=tuple(function.scheduler_placement.regions),
            schedule=str(function.schedule).strip(),
        )

    def _secret(self, secret_id: str) -> SecretUse:
        try:
            metadata = self._secrets.metadata(secret_id)
        except GRPCError:
            return SecretUse("(deleted)", secret_id, ())
        return SecretUse(metadata.name, secret_id, tuple(metadata.keys))

    def _volume(self, mount: Any) -> VolumeUse:
        try:
            name = self._volumes.metadata(mount.volume_id).name
        except GRPCError:
            name = "(deleted)"
        return VolumeUse(name, mount.volume_id, mount.read_only, mount.sub_path)

    def calls(self, function_name: str | None = None) -> list[CallInfo]:
        """Return the calls, of one function or all, oldest first."""
        found = [self._call(call) for call in self._calls.all()]
        return [each for each in found if function_name in (None, each.function_name)]

    def _call(self, call: Call) -> CallInfo:
        return CallInfo(
            call_id=call.call_id,
            function_id=call.function_id,
            function_name=self._functions.get(call.function_id).name,
            app_id=call.app_id,
            parent_input_id=call.parent_input_id,
            created_at=call.created_at,
            inputs=tuple(self._input(item) for item in call.inputs.values()),
        )

    def _input(self, item: Input) -> InputInfo:
        return InputInfo(
            input_id=item.input_id,
            idx=item.idx,
            status=STATUS_NAMES.get(item.status, "failure") if item.done else "",
            attempts=item.attempts,
            starts=item.starts,
            task_id=item.task_id,
            started_at=item.started_at,
            finished_at=item.finished_at,
        )

    def containers(self) -> list[ContainerInfo]:
        """Return all containers since the start of the server, ended ones first."""
        ended = [self._container(each, "ended") for each in self._pools.ended]
        running = []
        for each in self._pools.containers():
            state = "stopping" if each.stopping else "running" if each.ready else "starting"
            running.append(self._container(each, state))
        return ended + running

    def _container(self, container: Container, state: str) -> ContainerInfo:
        gpu = container.place.gpu
        return ContainerInfo(
            task_id=container.task_id,
            function_id=container.function.function_id,
            function_name=container.function.name,
            app_id=container.function.app_id,
            state=state,
            end_reason=container.end_reason,
            gpu=gpu.device if gpu else "",
            gpu_count=gpu.count if gpu else 0,
            pid=container.pid,
            inputs_taken=container.inputs_taken,
            running_input_ids=tuple(container.running),
            created_at=container.created_at,
            started_at=container.started_at,
            ended_at=container.ended_at,
        )

    def apps(self) -> list[AppInfo]:
        """Return all apps, oldest first."""
        return [
            AppInfo(
                app_id=app.app_id,
                name=app.name,
                description=app.description,
                environment=app.environment,
                state=api_pb2.AppState.Name(app.state).removeprefix("APP_STATE_").lower(),
                version=app.version,
                tags=dict(app.tags),
                function_ids=dict(app.function_ids),
                class_ids=dict(app.class_ids),
            )
            for app in self._apps.all()
        ]

    def images(self) -> list[ImageRecord]:
        """Return all images, oldest first."""
        return self._images.all()

    def logs(self, app_id: str) -> list[LogLine]:
        """Return the log lines of an app, oldest first."""
        return list(self._logs.of(app_id))
