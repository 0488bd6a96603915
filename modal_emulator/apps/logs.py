"""What containers print: kept per app, streamed live and read afterwards."""

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

# A message per line is what makes a flood of output slow; a huge one would hold others up.
_BATCH_CHARS = 1 << 17
# The ids and times of a line weigh about as much as a text of this length.
_LINE_CHARS = 128


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

    @property
    def origin(self) -> tuple[str, str, str, str]:
        """What all lines of a message have in common."""
        return (self.task_id, self.function_id, self.base_function_id, self.input_id)

    @property
    def read_with(self) -> tuple[object, ...]:
        """What all lines have in common that are joined with this one."""
        # What moves a progress bar is shown piece by piece, so it is joined with nothing.
        alone = None if self.text.endswith("\n") else object()
        return (*self.origin, self.call_id, self.source, self.at, alone)

    def dump(self) -> str:
        """Serialise for the state file."""
        # Not asdict: it copies each value, which takes longer than all the rest.
        return json.dumps(vars(self))

    def add_to(self, batch: Any) -> None:
        """Add the line to a message of its origin."""
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
    """Which lines a request asks for; what is empty lets every line through."""

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

    def lets_through(self, line: LogLine) -> bool:
        """Tell whether a line is asked for."""
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
    """Join lines in a row that were read at once from one stream, under the place of the last."""
    for _, group in groupby(found, key=lambda each: each[1].read_with):
        *_, (entry, line) = lines = list(group)
        yield entry, replace(line, text="".join(each.text for _, each in lines))


def pack_lines(found: Iterable[tuple[int, LogLine]]) -> Iterator[Any]:
    """Yield lines, each with its 1-based place in the app, in messages as the client reads them.

    A message holds lines in a row that have their origin in common.
    """
    batch, origin, size_chars = None, None, 0
    for entry, line in found:
        if batch is None or line.origin != origin or size_chars > _BATCH_CHARS:
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
        # A client that comes back goes on after the last line of the last message it got.
        batch.entry_id = f"{entry}-0"
        size_chars += len(line.text) + _LINE_CHARS
    if batch is not None:
        yield batch


class Logs:
    """The log lines of every app."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lines: dict[str, list[LogLine]] = {}
        self.changed = Notifier()

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
        self._state.append_logs(app_id, [line.dump() for line in added])
        self.changed.notify()

    def say(self, app_id: str, text: str, **where: str) -> None:
        """Add a line of the platform itself."""
        self.append(app_id, [LogLine(text + "\n", SYSTEM, time.time(), **where)])


class LogService:
    """Answers App{Get,Fetch,Count}Logs."""

    def __init__(self, logs: Logs, apps: Apps) -> None:
        self._logs = logs
        self._apps = apps

    async def AppGetLogs(self, request: Message) -> AsyncIterator[Message]:
        """Stream lines after an entry until the timeout, or until the app is done."""
        if request.sandbox_id:
            raise GRPCError(Status.UNIMPLEMENTED, "The emulator does not emulate sandboxes.")
        app = self._apps.get(request.app_id)
        wanted = LogFilter.of(request, request.file_descriptor)
        entry = int(request.last_entry_id.partition("-")[0] or 0)
        ends_at = time.monotonic() + request.timeout
        # The client that runs the app only prints what it gets, line by line more slowly than
        # containers print here, and drops the rest 10 s after the app's end.
        printed_only = (
            app.connection_id == current_caller.get().connection_id and wanted == LogFilter()
        )
        while True:
            # Read the state first: the last line of a stopped app is written before it stops.
            done = app.state == STOPPED
            lines = self._logs.of(app.app_id)
            new = enumerate(lines[entry:], start=entry + 1)
            entry = len(lines)
            found = (each for each in new if wanted.lets_through(each[1]))
            for batch in pack_lines(join_lines(found) if printed_only else found):
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
            if since <= line.at < until and wanted.lets_through(line)
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
