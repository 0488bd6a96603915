"""Answers the App* RPCs."""

from __future__ import annotations

import time
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import DEPLOYED, USER, AppRecord, Apps
from modal_emulator.apps.functions import Functions
from modal_emulator.rpc.caller import current_caller
from modal_emulator.rpc.protocol import known_fields
from modal_emulator.rpc.rpc import Message
from modal_emulator.scheduling.app_clients import AppClients
from modal_emulator.scheduling.autoscaler import Autoscaler
from modal_emulator.scheduling.pools import ContainerPools
from modal_emulator.scheduling.termination import Termination


def lifecycle_of(app: AppRecord) -> Any:
    """Return the `AppLifecycle` message of an app."""
    return api_pb2.AppLifecycle(
        app_state=app.state,
        created_at=app.created_at,
        created_by=USER,
        deployed_at=app.deployed_at,
        deployed_by=USER if app.deployed_at else "",
        version=app.version,
        stopped_at=app.stopped_at,
        stopped_by=app.stopped_by,
    )


def page_url(app: AppRecord) -> str:
    """Return the URL that the client prints as the app's page, where there is no server."""
    return f"http://emulator.invalid/apps/{app.app_id}"


class AppService:
    """Answers the App* RPCs except those for logs."""

    def __init__(
        self,
        apps: Apps,
        functions: Functions,
        pools: ContainerPools,
        clients: AppClients,
        autoscaler: Autoscaler,
        termination: Termination,
    ) -> None:
        self._apps = apps
        self._functions = functions
        self._pools = pools
        self._clients = clients
        self._autoscaler = autoscaler
        self._termination = termination

    def _handle(self, app: AppRecord) -> Any:
        return api_pb2.AppHandleMetadata(
            description=app.description,
            app_id=app.app_id,
            environment_name=app.environment,
            lifecycle=lifecycle_of(app),
            functions=app.function_ids,
        )

    async def AppCreate(self, request: Message) -> Message:
        app = self._apps.create(
            request.description, request.environment_name, request.app_state, dict(request.tags)
        )
        self._clients.heartbeat(app)
        return api_pb2.AppCreateResponse(
            app_id=app.app_id, app_page_url=page_url(app), app_logs_url=page_url(app)
        )

    async def AppGetOrCreate(self, request: Message) -> Message:
        app = self._apps.find_deployed(request.app_name, request.environment_name)
        create = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if app is None and create:
            app = self._apps.create(request.app_name, request.environment_name, DEPLOYED, {})
            app.name, app.deployed_at = request.app_name, time.time()
            self._apps.save(app)
        elif app is None:
            app = self._apps.deployed(request.app_name, request.environment_name)
        return api_pb2.AppGetOrCreateResponse(app_id=app.app_id, handle_metadata=self._handle(app))

    async def AppLookup(self, request: Message) -> Message:
        app = self._apps.deployed(request.app_name, request.environment_name)
        return api_pb2.AppLookupResponse(app_id=app.app_id)

    async def AppGetByDeploymentName(self, request: Message) -> Message:
        app = self._apps.find_deployed(request.name, request.environment_name)
        environment = self._apps.resolve_environment(request.environment_name)
        response = api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        if app is not None:
            response.app_id = app.app_id
            response.lifecycle.CopyFrom(lifecycle_of(app))
        return response

    async def AppGetLayout(self, request: Message) -> Message:
        layout = self._apps.layout(self._apps.get(request.app_id))
        return api_pb2.AppGetLayoutResponse(app_layout=layout)

    async def AppPublish(self, request: Message) -> Message:
        app = self._apps.get(request.app_id)
        if request.staged:
            raise GRPCError(Status.UNIMPLEMENTED, "The emulator has no staged deployments.")
        self._apps.publish(app, request, current_caller.get().client_version)
        if app.state == DEPLOYED:
            self._clients.detach(app)
        self._autoscaler.scale_all()
        self._autoscaler.keep_warm(app)
        return api_pb2.AppPublishResponse(url=page_url(app), deployed_at=app.deployed_at)

    async def AppRollback(self, request: Message) -> Message:
        app = self._require_deployed(request.app_id)
        self._apps.roll_back(app, request.version, current_caller.get().client_version)
        self._autoscaler.scale_all()
        return api_pb2.AppRollbackResponse(url=page_url(app), deployed_at=app.deployed_at)

    async def AppRollover(self, request: Message) -> Message:
        app = self._require_deployed(request.app_id)
        self._apps.roll_over(app, current_caller.get().client_version)
        for container in self._pools.of_app(app.app_id):
            self._termination.stop_container(container, graceful=True)
        self._autoscaler.scale_all()
        return api_pb2.AppRolloverResponse(url=page_url(app), deployed_at=app.deployed_at)

    def _require_deployed(self, app_id: str) -> AppRecord:
        app = self._apps.get(app_id)
        if app.state != DEPLOYED:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App '{app_id}' is not deployed")
        return app

    async def AppHeartbeat(self, request: Message) -> Message:
        self._clients.heartbeat(self._apps.get(request.app_id))
        return Empty()

    async def AppClientDisconnect(self, request: Message) -> Message:
        self._clients.on_gone(self._apps.get(request.app_id))
        return Empty()

    async def AppStop(self, request: Message) -> Message:
        self._termination.stop_app(self._apps.get(request.app_id), stopped_by=USER)
        return Empty()

    async def AppList(self, request: Message) -> Message:
        response = api_pb2.AppListResponse()
        environment = self._apps.resolve_environment(request.environment_name)
        for app in self._apps.all():
            if app.environment != environment:
                continue
            response.apps.add(
                app_id=app.app_id,
                description=app.description,
                state=app.state,
                created_at=app.created_at,
                stopped_at=app.stopped_at,
                n_running_tasks=len(self._pools.of_app(app.app_id)),
                name=app.name,
                **known_fields(api_pb2.AppListResponse.AppListItem, metadata=self._handle(app)),
            )
        return response

    async def AppGetLifecycle(self, request: Message) -> Message:
        lifecycle = lifecycle_of(self._apps.get(request.app_id))
        return api_pb2.AppGetLifecycleResponse(lifecycle=lifecycle)

    async def AppGetInfo(self, request: Message) -> Message:
        app = self._apps.get(request.app_id)
        response = api_pb2.AppGetInfoResponse(info=self._handle(app))
        for function_id in app.function_ids.values():
            summary = response.function_info_summaries[function_id]
            data = self._functions.current_data(self._functions.get(function_id))
            for ranked in data.ranked_functions:
                if ranked.function.resources.gpu_config.count:
                    summary.gpu_config.append(ranked.function.resources.gpu_config)
        return response

    async def AppDeploymentHistory(self, request: Message) -> Message:
        app = self._apps.get(request.app_id)
        response = api_pb2.AppDeploymentHistoryResponse(production_app_version=app.version)
        for deployment in app.deployments:
            entry = response.app_deployment_histories.add(
                app_id=app.app_id,
                version=deployment.version,
                client_version=deployment.client_version,
                deployed_at=deployment.deployed_at,
                deployed_by=USER,
                tag=deployment.tag,
                rollback_version=deployment.rollback_version,
                rollback_allowed=True,
            )
            if deployment.commit_hash:
                entry.commit_info.commit_hash = deployment.commit_hash
        return response

    async def AppSetTags(self, request: Message) -> Message:
        app = self._apps.get(request.app_id)
        app.tags = dict(request.tags)
        self._apps.save(app)
        return Empty()

    async def AppGetTags(self, request: Message) -> Message:
        tags = self._apps.get(request.app_id).tags
        return api_pb2.AppGetTagsResponse(tags=tags)
