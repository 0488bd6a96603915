"""Preempts, kills and stops containers, and stops apps."""

from __future__ import annotations

import logging
import time

from modal_emulator.apps.apps import STOPPED, STOPPING, AppRecord, Apps
from modal_emulator.apps.calls import Calls
from modal_emulator.apps.logs import Logs
from modal_emulator.containers.container import Container
from modal_emulator.scheduling.autoscaler import Autoscaler
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)


class Termination:
    """Ends containers and apps."""

    def __init__(
        self,
        pools: ContainerPools,
        apps: Apps,
        calls: Calls,
        logs: Logs,
        scheduler: Scheduler,
        autoscaler: Autoscaler,
        *,
        stop_grace_s: float,
    ) -> None:
        self._pools = pools
        self._apps = apps
        self._calls = calls
        self._logs = logs
        self._scheduler = scheduler
        self._autoscaler = autoscaler
        self._stop_grace_s = stop_grace_s

    def preempt(self, container: Container, grace_s: float) -> None:
        """Send SIGINT, and SIGKILL after the grace period; the inputs run again elsewhere.

        A container of a function with `nonpreemptible=True` runs on.
        """
        if container.definition.scheduler_placement.nonpreemptible:
            message = f"Container {container.task_id} is not preempted: it is nonpreemptible."
            self._logs.append_system_line(
                container.function.app_id, message, task_id=container.task_id
            )
            return
        self._logs.append_system_line(
            container.function.app_id,
            f"Container {container.task_id} is preempted.",
            task_id=container.task_id,
        )
        log.info("container %s of %s is preempted", container.task_id, container.function.name)
        for each in container.gang:
            each.interrupt("preempted", grace_s)

    def kill(self, container: Container) -> None:
        """Kill a container, as a crash would: its inputs fail, or are retried."""
        log.info("container %s of %s is killed", container.task_id, container.function.name)
        container.end("killed")
        container.kill()

    def stop_container(self, container: Container, *, graceful: bool) -> None:
        """End a container, `graceful` after its inputs, otherwise these run again elsewhere."""
        if graceful:
            container.end("stopped")
        else:
            container.interrupt("preempted", self._stop_grace_s)

    def stop_app(self, app: AppRecord, stopped_by: str) -> None:
        """Stop an app: end its calls at once, and its containers after their exit handlers."""
        if not app.running:
            return
        log.info("app %s is stopped", app.app_id)
        app.state, app.stopped_at, app.stopped_by = STOPPING, time.time(), stopped_by
        self._apps.save(app)
        busy = {each.task_id for each in self._pools.of_app(app.app_id) if each.running}
        self._scheduler.end_calls(app)
        for container in self._pools.of_app(app.app_id):
            self._shut_down(container, busy=container.task_id in busy)
        self.mark_stopped(app)

    def _shut_down(self, container: Container, *, busy: bool) -> None:
        if busy:
            container.interrupt("app_stopped", self._stop_grace_s)
            return
        container.end("app_stopped")
        if container.ready and not container.function.command:
            # it waits for inputs, gets none, and exits after its exit handlers
            container.kill_after(self._stop_grace_s)
        else:
            container.kill()

    def mark_stopped(self, app: AppRecord) -> None:
        """Change the state of an app from stopping to stopped, once it has no containers."""
        if app.state == STOPPING and not self._pools.of_app(app.app_id):
            app.state = STOPPED
            self._apps.save(app)
            self._logs.changed.notify()

    def has_work(self, app: AppRecord) -> bool:
        """Return whether an app has unfinished calls."""
        return any(call.unfinished for call in self._calls.of_app(app.app_id))

    async def close(self) -> None:
        """End all containers, also those of deployed apps, and wait for their ends."""
        self._scheduler.close()
        for container in self._pools.containers():
            self._shut_down(container, busy=bool(container.running))
        await self._autoscaler.close()
