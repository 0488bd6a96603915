"""The output of containers: stored by app, and sent to clients live or afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import STOPPED, Apps
from modal_emulator.rpc.caller import current_caller
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.rpc import EnumValue, Message
from modal_emulator.storage.state import State

STDOUT = api_pb2.FILE_DESCRIPTOR_STDOUT
STDERR = api_pb2.FILE_DESCRIPTOR_STDERR
SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO

# a message per line would be slow, and a huge message would delay other ones
_MAX_BATCH_CHARS = 1 << 17
# about the size of the ids and times of a line
_LINE_OVERHEAD_CHARS = 128


@dataclass(frozen=True)
class LogLine:
    """A line that a container printed, or a part of one without a line end."""

    text: str
    source: EnumValue
    at: float
    task_id: str = ""
    function_id: str = ""
    base_function_id: str = ""
    call_id: str = ""
    input_id: str = ""

    @property
    def origin(self) -> tuple[str, str, str, str]:
        """What all lines of one message have in common."""
        return (self.task_id, self.function_id, self.base_function_id, self.input_id)

    @property
    def join_key(self) -> tuple[object, ...]:
        """What all lines that can be joined with this one have in common."""
        # each step of a progress bar is shown, so these are never joined
        alone = None if self.text.endswith("\n") else object()
        return (*self.origin, self.call_id, self.source, self.at, alone)

    def dump(self) -> str:
        """Serialise for the state file."""
        # not asdict, which copies each value and takes longer than all the rest
        return json.dumps(vars(self))

    def add_to(self, batch: Any) -> None:
        """Add the line to a `TaskLogsBatch` message of its origin."""
        batch.items.add(
            data=self.text,
            timestamp=self.at,
            timestamp_ns=int(self.at * 1e9),
            file_descriptor=self.source,
            function_call_id=self.call_id,
            input_id=self.input_id,
            container_id=self.task_id,
        )


@dataclass(frozen=True)
class LogFilter:
    """The filter of a request for log lines; an empty field matches every line."""

    source: EnumValue = 0
    function_id: str = ""
    variant_id: str = ""
    call_id: str = ""
    task_id: str = ""
    search_text: str = ""

    @classmethod
    def of(cls, request: Any, source: EnumValue) -> LogFilter:
        """Return the filter of an App{Get,Fetch,Count}Logs request."""
        return cls(
            source=source,
            function_id=request.function_id,
            variant_id=request.parametrized_function_id,
            call_id=request.function_call_id,
            task_id=request.task_id,
            search_text=request.search_text,
        )

    def matches(self, line: LogLine) -> bool:
        """Return whether the request is for this line."""
        return (
            (not self.source or self.source == line.source)
            and (
                not self.function_id
                or self.function_id in (line.function_id, line.base_function_id)
            )
            and (not self.variant_id or self.variant_id == line.function_id)
            and (not self.call_id or self.call_id == line.call_id)
            and (not self.task_id or self.task_id == line.task_id)
            and (not self.search_text or self.search_text in line.text)
        )


def join_lines(found: Iterable[tuple[int, LogLine]]) -> Iterator[tuple[int, LogLine]]:
    """Join consecutive lines that were read at the same time from the same stream.

    A joined line has the place of the last one.
    """
    for _, group in groupby(found, key=lambda each: each[1].join_key):
        *_, (entry, line) = lines = list(group)
        yield entry, replace(line, text="".join(each.text for _, each in lines))


def pack_lines(found: Iterable[tuple[int, LogLine]]) -> Iterator[Any]:
    """Yield `TaskLogsBatch` messages, each with consecutive lines of the same origin.

    Args:
        found: Lines, each with its place among those of the app, from 1 on.
    """
    batch, origin, size_chars = None, None, 0
    for entry, line in found:
        if batch is None or line.origin != origin or size_chars > _MAX_BATCH_CHARS:
            if batch is not None:
                yield batch
            origin, size_chars = line.origin, 0
            batch = api_pb2.TaskLogsBatch(
                task_id=line.task_id,
                function_id=line.function_id,
                root_function_id=line.base_function_id,
                input_id=line.input_id,
            )
        line.add_to(batch)
        # after a lost connection, the client continues after the last line of the last message
        batch.entry_id = f"{entry}-0"
        size_chars += len(line.text) + _LINE_OVERHEAD_CHARS
    if batch is not None:
        yield batch


class Logs:
    """The log lines of all apps."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lines: dict[str, list[LogLine]] = {}
        self.changed = Notifier()

    def of(self, app_id: str) -> list[LogLine]:
        """Return the lines of an app, oldest first."""
        if app_id not in self._lines:
            self._lines[app_id] = [LogLine(**json.loads(x)) for x in self._state.logs(app_id)]
        return self._lines[app_id]

    def append(self, app_id: str, lines: Iterable[LogLine]) -> None:
        """Add lines, and wake the RPCs that wait for them."""
        added = list(lines)
        if not added:
            return
        self.of(app_id).extend(added)
        self._state.append_logs(app_id, [line.dump() for line in added])
        self.changed.notify()

    def append_system_line(self, app_id: str, message: str, **origin: str) -> None:
        """Add a line that comes from the server, not from a container."""
        self.append(app_id, [LogLine(f"{message}\n", SYSTEM, time.time(), **origin)])


class LogService:
    """Answers App{Get,Fetch,Count}Logs."""

    def __init__(self, logs: Logs, apps: Apps) -> None:
        self._logs = logs
        self._apps = apps

    async def AppGetLogs(self, request: Message) -> AsyncIterator[Message]:
        """Yield the lines after an entry, until the timeout or until the app is stopped."""
        if request.sandbox_id:
            raise GRPCError(Status.UNIMPLEMENTED, "The emulator does not emulate sandboxes.")
        app = self._apps.get(request.app_id)
        wanted = LogFilter.of(request, request.file_descriptor)
        entry = int(request.last_entry_id.partition("-")[0] or 0)
        ends_at = time.monotonic() + request.timeout
        # The client that runs the app prints each line more slowly than containers do, and
        # discards the rest 10 s after the end of the app, so lines are joined for it.
        join = app.connection_id == current_caller.get().connection_id and wanted == LogFilter()
        while True:
            # before the lines are read: the last line is written before the app is stopped
            done = app.state == STOPPED
            lines = self._logs.of(app.app_id)
            new = enumerate(lines[entry:], start=entry + 1)
            entry = len(lines)
            found = (each for each in new if wanted.matches(each[1]))
            for batch in pack_lines(join_lines(found) if join else found):
                yield batch
            if done:
                yield api_pb2.TaskLogsBatch(entry_id=f"{entry}-0", app_done=True)
                return
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return
            if entry == len(lines) and app.state != STOPPED:
                await self._logs.changed.wait(left_s)

    def _between(self, request: Any) -> list[tuple[int, LogLine]]:
        app = self._apps.get(request.app_id)
        since = request.since.seconds + request.since.nanos / 1e9
        until = request.until.seconds + request.until.nanos / 1e9
        wanted = LogFilter.of(request, request.source)
        return [
            (entry, line)
            for entry, line in enumerate(self._logs.of(app.app_id), start=1)
            if since <= line.at < until and wanted.matches(line)
        ]

    async def AppFetchLogs(self, request: Message) -> Message:
        """Return the newest lines of a time range."""
        found = self._between(request)
        if request.limit:
            found = found[-request.limit :]
        return api_pb2.AppFetchLogsResponse(batches=pack_lines(found))

    async def AppCountLogs(self, request: Message) -> Message:
        """Count the lines of a time range per bucket, empty buckets included."""
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
        return response
