"""What containers print: kept per app, streamed live and read afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from ml_experiments.emulator.apps import STOPPED, Apps
from ml_experiments.emulator.changes import Changes
from ml_experiments.emulator.rpc import EnumValue, Stream
from ml_experiments.emulator.state import State

STDOUT = api_pb2.FILE_DESCRIPTOR_STDOUT
STDERR = api_pb2.FILE_DESCRIPTOR_STDERR
SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO


@dataclass(frozen=True)
class LogLine:
    """One line (or a rest without a line end) that a container printed."""

    text: str
    source: EnumValue
    at: float
    task_id: str = ""
    function_id: str = ""
    base_function_id: str = ""
    call_id: str = ""
    input_id: str = ""

    def batch(self, entry: int) -> Any:
        """Return the line as the client reads it; `entry` is its 1-based place in the app."""
        item = api_pb2.TaskLogs(
            data=self.text,
            timestamp=self.at,
            timestamp_ns=int(self.at * 1e9),
            file_descriptor=self.source,
            function_call_id=self.call_id,
            input_id=self.input_id,
            container_id=self.task_id,
        )
        return api_pb2.TaskLogsBatch(
            task_id=self.task_id,
            function_id=self.function_id,
            root_function_id=self.base_function_id,
            input_id=self.input_id,
            entry_id=f"{entry}-0",
            items=[item],
        )

    def matches(self, request: Any, source: EnumValue) -> bool:
        """Tell whether a request's filters let the line through; an empty filter does."""
        return (
            (not source or source == self.source)
            and (
                not request.function_id
                or request.function_id in (self.function_id, self.base_function_id)
            )
            and (
                not request.parametrized_function_id
                or request.parametrized_function_id == self.function_id
            )
            and (not request.function_call_id or request.function_call_id == self.call_id)
            and (not request.task_id or request.task_id == self.task_id)
            and (not request.search_text or request.search_text in self.text)
        )


class Logs:
    """The log lines of every app."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lines: dict[str, list[LogLine]] = {}
        self.changes = Changes()

    def of(self, app_id: str) -> list[LogLine]:
        """Return the lines of an app in order."""
        if app_id not in self._lines:
            self._lines[app_id] = [LogLine(**json.loads(x)) for x in self._state.logs(app_id)]
        return self._lines[app_id]

    def append(self, app_id: str, lines: Iterable[LogLine]) -> None:
        """Add lines and wake those who follow."""
        added = list(lines)
        if not added:
            return
        self.of(app_id).extend(added)
        self._state.append_logs(app_id, [json.dumps(asdict(line)) for line in added])
        self.changes.announce()

    def say(self, app_id: str, text: str, **where: str) -> None:
        """Add a line of the platform itself."""
        self.append(app_id, [LogLine(text + "\n", SYSTEM, time.time(), **where)])


class LogService:
    """Answers App{Get,Fetch,Count}Logs."""

    def __init__(self, logs: Logs, apps: Apps) -> None:
        self._logs = logs
        self._apps = apps

    async def AppGetLogs(self, stream: Stream) -> None:  # noqa: N802 (an RPC's name)
        """Stream lines after an entry until the timeout, or until the app is done."""
        request = await stream.recv_message()
        if request.sandbox_id:
            raise GRPCError(Status.UNIMPLEMENTED, "The emulator does not emulate sandboxes.")
        app = self._apps.get(request.app_id)
        entry = int(request.last_entry_id.partition("-")[0] or 0)
        ends_at = time.monotonic() + request.timeout
        while True:
            # Read the state first: the last line of a stopped app is written before it stops.
            done = app.state == STOPPED
            lines = self._logs.of(app.app_id)
            while entry < len(lines):
                entry += 1
                if lines[entry - 1].matches(request, request.file_descriptor):
                    await stream.send_message(lines[entry - 1].batch(entry))
            if done:
                await stream.send_message(
                    api_pb2.TaskLogsBatch(entry_id=f"{entry}-0", app_done=True)
                )
                return
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return
            if entry == len(lines) and app.state != STOPPED:
                await self._logs.changes.wait(left_s)

    def _between(self, request: Any) -> list[tuple[int, LogLine]]:
        app = self._apps.get(request.app_id)
        since = request.since.seconds + request.since.nanos / 1e9
        until = request.until.seconds + request.until.nanos / 1e9
        return [
            (entry, line)
            for entry, line in enumerate(self._logs.of(app.app_id), start=1)
            if since <= line.at < until and line.matches(request, request.source)
        ]

    async def AppFetchLogs(self, stream: Stream) -> None:  # noqa: N802 (an RPC's name)
        """Return the newest lines of a time range."""
        request = await stream.recv_message()
        found = self._between(request)
        if request.limit:
            found = found[-request.limit :]
        batches = [line.batch(entry) for entry, line in found]
        await stream.send_message(api_pb2.AppFetchLogsResponse(batches=batches))

    async def AppCountLogs(self, stream: Stream) -> None:  # noqa: N802 (an RPC's name)
        """Count the lines of a time range per bucket, empty buckets included."""
        request = await stream.recv_message()
        width = max(request.bucket_secs, 1)
        first = request.since.seconds // width * width
        response = api_pb2.AppCountLogsResponse(app_id=request.app_id)
        for start in range(first, request.until.seconds + 1, width):
            response.buckets.add(bucket_start_at=Timestamp(seconds=start))
        counted = {STDOUT: "stdout_logs", STDERR: "stderr_logs", SYSTEM: "system_logs"}
        for _, line in self._between(request):
            bucket = response.buckets[(int(line.at) - first) // width]
            name = counted[line.source]
            setattr(bucket, name, getattr(bucket, name) + 1)
        await stream.send_message(response)
