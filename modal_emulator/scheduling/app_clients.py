"""The connections of the clients that run apps, and what happens to the apps when they end."""

from __future__ import annotations

import asyncio
import logging
import time

from modal_emulator.apps.apps import DEPLOYED, DETACHED, DETACHED_DISCONNECTED, AppRecord, Apps
from modal_emulator.rpc.caller import current_caller
from modal_emulator.scheduling.termination import Termination

log = logging.getLogger(__name__)


class AppClients:
    """Stops an ephemeral app when its client is gone, and a detached one after its last call."""

    def __init__(
        self, apps: Apps, termination: Termination, *, reconnect_s: float, heartbeat_limit_s: float
    ) -> None:
        self._apps = apps
        self._termination = termination
        self._reconnect_s = reconnect_s
        self._heartbeat_limit_s = heartbeat_limit_s

    def heartbeat(self, app: AppRecord) -> None:
        """Record that the calling client runs the app."""
        app.connection_id = current_caller.get().connection_id
        app.last_heartbeat = time.monotonic()

    def detach(self, app: AppRecord) -> None:
        """Record that the app needs no client, because it is deployed."""
        app.connection_id = None

    def on_gone(self, app: AppRecord) -> None:
        """Handle the end of the app's client."""
        app.connection_id = None
        if app.state == DEPLOYED or not app.running:
            return
        if app.state in (DETACHED, DETACHED_DISCONNECTED) and self._termination.has_work(app):
            app.state = DETACHED_DISCONNECTED
            self._apps.save(app)
            return
        self._termination.stop_app(app, stopped_by="")

    def on_done(self, app: AppRecord) -> None:
        """Stop a detached app without a client after its last call."""
        if app.state == DETACHED_DISCONNECTED and not self._termination.has_work(app):
            self._termination.stop_app(app, stopped_by="")

    def connection_lost(self, connection_id: int) -> None:
        """Handle the end of a connection: the app's client is gone unless it reconnects soon."""
        loop = asyncio.get_running_loop()
        for app in self._apps.all():
            if app.connection_id == connection_id:
                loop.call_later(self._reconnect_s, self._on_no_reconnect, app, connection_id)

    def _on_no_reconnect(self, app: AppRecord, connection_id: int) -> None:
        if app.connection_id == connection_id:
            log.info("the client of %s is gone", app.app_id)
            self.on_gone(app)

    async def watch_heartbeats(self) -> None:
        """Detect clients that are connected but send no heartbeats; runs until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat_limit_s / 10)
            oldest = time.monotonic() - self._heartbeat_limit_s
            for app in self._apps.all():
                if app.connection_id is not None and app.last_heartbeat < oldest:
                    log.info("no heartbeat of %s", app.app_id)
                    self.on_gone(app)
