"""Apps: ephemeral, detached and deployed, with their versions and layout."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.functions import Functions
from modal_emulator.objects.environments import EnvironmentService
from modal_emulator.rpc.rpc import EnumValue
from modal_emulator.storage.ids import new_id
from modal_emulator.storage.state import State

DETACHED = api_pb2.APP_STATE_DETACHED
DETACHED_DISCONNECTED = api_pb2.APP_STATE_DETACHED_DISCONNECTED
DEPLOYED = api_pb2.APP_STATE_DEPLOYED
STOPPING = api_pb2.APP_STATE_STOPPING
STOPPED = api_pb2.APP_STATE_STOPPED

USER = "emulator"


@dataclass(frozen=True)
class Deployment:
    """One version of a deployed app."""

    version: int
    deployed_at: float
    tag: str
    client_version: str
    commit_hash: str
    function_ids: dict[str, str]
    class_ids: dict[str, str]
    # function id -> definition id, which a rollback restores
    definition_ids: dict[str, str]
    rollback_version: int = 0


@dataclass
class AppRecord:
    """An app."""

    app_id: str
    description: str
    environment: str
    state: EnumValue
    created_at: float
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    deployments: list[Deployment] = field(default_factory=list)
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    stopped_by: str = ""
    # the connection of the client that runs the app; None if there is no client
    connection_id: int | None = None
    last_heartbeat: float = 0.0

    @property
    def version(self) -> int:
        """The newest deployed version, or 0 if the app was never deployed."""
        return self.deployments[-1].version if self.deployments else 0

    @property
    def running(self) -> bool:
        """Whether functions can be called."""
        return self.state not in (STOPPING, STOPPED)

    def dump(self) -> bytes:
        """Serialise for the state file."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> AppRecord:
        """Read what `dump` wrote."""
        fields = json.loads(data)
        fields["deployments"] = [Deployment(**entry) for entry in fields["deployments"]]
        return cls(**{**fields, "connection_id": None})


class Apps:
    """All apps by id, stored in the state file."""

    def __init__(
        self, state: State, environments: EnvironmentService, functions: Functions
    ) -> None:
        self._state = state
        self._environments = environments
        self._functions = functions
        self._records: dict[str, AppRecord] = {}
        for app_id, data in state.objects("app"):
            record = AppRecord.load(data)
            if record.state != DEPLOYED and record.running:
                # its client and its containers ended with the last server
                record.state, record.stopped_at = STOPPED, record.stopped_at or time.time()
            self._records[app_id] = record

    def all(self) -> list[AppRecord]:
        """Return every app, oldest first."""
        return list(self._records.values())

    def get(self, app_id: str) -> AppRecord:
        """Return an app.

        Raises:
            GRPCError: If there is none (NOT_FOUND).
        """
        if app_id not in self._records:
            raise GRPCError(Status.NOT_FOUND, f"App '{app_id}' not found")
        return self._records[app_id]

    def save(self, record: AppRecord) -> None:
        """Store a new or changed app."""
        self._records[record.app_id] = record
        self._state.put("app", record.app_id, record.dump())

    def create(
        self, description: str, environment: str, state: EnumValue, tags: dict[str, str]
    ) -> AppRecord:
        """Add an app."""
        record = AppRecord(
            app_id=new_id("ap"),
            description=description,
            environment=self._environments.resolve(environment),
            state=state,
            created_at=time.time(),
            tags=tags,
        )
        self.save(record)
        return record

    def resolve_environment(self, name: str) -> str:
        """Return the environment's name, the default one for an empty name."""
        return self._environments.resolve(name)

    def all_deployed(self, environment: str) -> list[AppRecord]:
        """Return the apps that are deployed in an environment."""
        environment = self._environments.resolve(environment)
        return [
            record
            for record in self._records.values()
            if (record.environment, record.state) == (environment, DEPLOYED)
        ]

    def find_deployed(self, name: str, environment: str) -> AppRecord | None:
        """Return the app that is deployed with a name, if there is one."""
        found = (record for record in self.all_deployed(environment) if record.name == name)
        return next(found, None)

    def deployed(self, name: str, environment: str) -> AppRecord:
        """Return the app that is deployed with a name.

        Raises:
            GRPCError: If there is none (NOT_FOUND); the message lists the names of those there.
        """
        record = self.find_deployed(name, environment)
        if record is None:
            environment = self._environments.resolve(environment)
            names = sorted(each.name for each in self.all_deployed(environment))
            raise GRPCError(
                Status.NOT_FOUND,
                f"App '{name}' is not deployed in environment '{environment}'. "
                f"Deployed there: {', '.join(names) or 'none'}",
            )
        return record

    def publish(self, record: AppRecord, request: Any, client_version: str) -> None:
        """Handle an `AppPublishRequest`: its definitions become the current ones."""
        self._activate(dict(request.definition_ids))
        record.function_ids = dict(request.function_ids)
        record.class_ids = dict(request.class_ids)
        record.tags = dict(request.tags) or record.tags
        if request.app_state == DEPLOYED:
            record.name, record.state = request.name, DEPLOYED
            record.description = request.name
            self._add_deployment(
                record,
                tag=request.deployment_tag,
                client_version=client_version,
                commit_hash=request.commit_info.commit_hash,
                definition_ids=dict(request.definition_ids),
            )
        self.save(record)

    def _add_deployment(
        self,
        record: AppRecord,
        *,
        tag: str,
        client_version: str,
        commit_hash: str,
        definition_ids: dict[str, str],
        rollback_version: int = 0,
    ) -> None:
        record.deployed_at = time.time()
        record.deployments.append(
            Deployment(
                version=record.version + 1,
                deployed_at=record.deployed_at,
                tag=tag,
                client_version=client_version,
                commit_hash=commit_hash,
                function_ids=dict(record.function_ids),
                class_ids=dict(record.class_ids),
                definition_ids=definition_ids,
                rollback_version=rollback_version,
            )
        )

    def _activate(self, definition_ids: dict[str, str]) -> None:
        for function_id, definition_id in definition_ids.items():
            function = self._functions.get(function_id)
            function.definition_id = definition_id
            self._functions.save(function)

    def deployment(self, record: AppRecord, version: int) -> Deployment:
        """Return a version of a deployed app.

        Raises:
            GRPCError: If the app has no such version (NOT_FOUND).
        """
        for deployment in record.deployments:
            if deployment.version == version:
                return deployment
        known = ", ".join(str(each.version) for each in record.deployments) or "none"
        raise GRPCError(
            Status.NOT_FOUND, f"App '{record.name}' has no version {version}. It has: {known}"
        )

    def roll_back(self, record: AppRecord, version: int, client_version: str) -> None:
        """Deploy an older version again; a negative version counts back from the newest.

        Raises:
            GRPCError: If the app has no such version (NOT_FOUND).
        """
        wanted = record.version + version if version <= 0 else version
        deployment = self.deployment(record, wanted)
        self._activate(deployment.definition_ids)
        record.function_ids = dict(deployment.function_ids)
        record.class_ids = dict(deployment.class_ids)
        self._add_deployment(
            record,
            tag=deployment.tag,
            client_version=client_version,
            commit_hash=deployment.commit_hash,
            definition_ids=dict(deployment.definition_ids),
            rollback_version=wanted,
        )
        self.save(record)

    def roll_over(self, record: AppRecord, client_version: str) -> None:
        """Deploy the current version again, for new containers."""
        newest = record.deployments[-1]
        self._add_deployment(
            record,
            tag=newest.tag,
            client_version=client_version,
            commit_hash=newest.commit_hash,
            definition_ids=dict(newest.definition_ids),
        )
        self.save(record)

    def layout(self, record: AppRecord) -> Any:
        """Return the functions and classes of an app with their handles."""
        layout = api_pb2.AppLayout(function_ids=record.function_ids, class_ids=record.class_ids)
        for function_id in record.function_ids.values():
            handle = self._functions.handle(self._functions.get(function_id))
            layout.objects.add(object_id=function_id, function_handle_metadata=handle)
        for class_id in record.class_ids.values():
            layout.objects.add(
                object_id=class_id, class_handle_metadata=api_pb2.ClassHandleMetadata()
            )
        return layout
