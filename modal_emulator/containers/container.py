"""A container: a real process that runs Modal's own container entrypoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from modal_emulator.apps.calls import Input
from modal_emulator.apps.functions import RunnableFunction
from modal_emulator.apps.logs import STDERR, STDOUT, LogLine, Logs
from modal_emulator.containers.execution import Execution
from modal_emulator.containers.launch import Launch, Launcher, Placement
from modal_emulator.objects.layers import Layer
from modal_emulator.rpc.notifier import Notifier
from modal_emulator.rpc.rpc import RpcServer

log = logging.getLogger(__name__)

# why a container is ended; empty otherwise, so that an exit is a crash
EndReason = Literal[
    "", "idle", "outdated", "preempted", "killed", "timeout", "startup_timeout", "app_stopped",
    "cancelled", "stopped", "out_of_memory",
]  # fmt: skip

_READ_BYTES = _PIPE_BYTES = _MAX_LINE_BYTES = 1 << 16
# time limit for the start of Python and modal, before the startup timeout of the function begins
_BOOT_LIMIT_S = 120


class OutputPipe:
    """An output stream of a process, which is read line by line."""

    def __init__(self, source: int, on_lines: Callable[[list[str], int], None]) -> None:
        self._source = source
        self._on_lines = on_lines
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop.add_reader(self._reader, self.drain)
        self._open = True

    def drain(self) -> None:
        """Read what the process has written so far, but not forever if it keeps writing."""
        for _ in range(2 * _PIPE_BYTES // _READ_BYTES):
            if not self._open:
                return
            try:
                data = os.read(self._reader, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            self._split(data)

    def _split(self, data: bytes) -> None:
        data = self._rest + data
        # a progress bar ends its lines with a carriage return
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end and len(data) > _MAX_LINE_BYTES:
            end = len(data)
        self._rest = data[end:]
        lines = [line.decode(errors="replace") for line in data[:end].splitlines(keepends=True)]
        if lines:
            self._on_lines(lines, self._source)

    def close_writer(self) -> None:
        """Close this process's copy of the file descriptor that the container writes to."""
        os.close(self.writer)

    def close(self) -> None:
        """Stop reading; a rest without a line end becomes a line."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        if self._rest:
            self._on_lines([self._rest.decode(errors="replace")], self._source)


class Container:
    """One container process, the inputs that it runs, and why it ended."""

    def __init__(
        self, function: RunnableFunction, place: Placement, logs: Logs, inputs: Notifier
    ) -> None:
        self.function = function
        self.place = place
        self.created_at = time.time()
        self.started_at = 0.0
        self.ended_at = 0.0
        self.ready = False
        self.stopping = False
        self.end_reason: EndReason = ""
        # those of its cluster, by rank, or it alone; the first one takes the inputs of all
        self.gang: list[Container] = [self]
        self.cluster_id = ""
        # where the others reach it, once it has said so
        self.cluster_address = ""
        # inputs of its cluster that it has not asked for yet
        self.inbox: deque[Input] = deque()
        self.running: dict[str, Input] = {}
        self.inputs_taken = 0
        # the error in the function's imports or `enter` methods, if there was one
        self.startup_error: Any = None
        self.startup_limit_s = _BOOT_LIMIT_S
        self.cancelled_input_ids: list[str] = []
        self.cancellations = Notifier()
        # wakes the RPC in which this container waits for inputs
        self._inputs = inputs
        self.pid = 0
        self.sandbox: Any = None
        self.environment: Mapping[str, str] = {}
        # commands beside the one that it is there for, by id
        self.executions: dict[str, Execution] = {}
        self._built: Layer | None = None
        self._logs = logs
        self._process: asyncio.subprocess.Process | None = None
        self._server: RpcServer | None = None
        self._pipes: list[OutputPipe] = []
        self._last_lines: list[str] = []
        self._kill_timer: asyncio.TimerHandle | None = None
        self._startup_timer: asyncio.TimerHandle | None = None

    @property
    def task_id(self) -> str:
        """The container's id."""
        return self.place.task_id

    @property
    def definition(self) -> Any:
        """The `Function` message of the function that it runs."""
        return self.function.ranked[self.place.rank]

    @property
    def leads(self) -> bool:
        """Whether it takes inputs of its own accord, and its outputs count."""
        return self.gang[0] is self

    @property
    def slots(self) -> int:
        """How many inputs it can run at the same time."""
        return self.function.slots

    @property
    def last_output(self) -> str:
        """The last lines that it printed, for a message about a failure."""
        return "".join(self._last_lines)

    async def spawn(self, launch: Launch, server: RpcServer) -> None:
        """Start the process, and the server for it alone."""
        self.sandbox, self._built = launch.sandbox, launch.built
        self.environment = launch.env
        self._server = server
        await server.start(path=str(self.place.socket))
        self._pipes = [OutputPipe(STDOUT, self._on_lines), OutputPipe(STDERR, self._on_lines)]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *launch.argv,
                env=launch.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=self._pipes[0].writer,
                stderr=self._pipes[1].writer,
                # a new process group, so that its child processes can be killed with it
                start_new_session=True,
            )
        finally:
            for pipe in self._pipes:
                pipe.close_writer()
        self.pid = self._process.pid
        self.started_at = time.time()
        self._limit_startup(_BOOT_LIMIT_S)
        if self.stopping:
            self.kill()

    async def wait(self) -> int:
        """Wait for the end of the process and return its exit code; the others end with it."""
        if self._process is None:
            return -1
        code = await self._process.wait()
        self.kill()
        return code

    def read_output(self) -> None:
        """Read what was printed so far, so that it is logged with the input that runs."""
        for pipe in self._pipes:
            pipe.drain()

    def _on_lines(self, lines: list[str], source: int) -> None:
        self._last_lines = [*self._last_lines, *lines][-20:]
        running = next(iter(self.running.values())) if len(self.running) == 1 else None
        printed = partial(
            LogLine,
            source=source,
            at=time.time(),
            task_id=self.task_id,
            function_id=self.function.function_id,
            base_function_id=self.function.base_id,
            call_id=running.call.call_id if running else "",
            input_id=running.input_id if running else "",
        )
        self._logs.append(self.function.app_id, [printed(line) for line in lines])

    def limit_startup(self) -> None:
        """Start the function's startup timeout, for its imports and `enter` methods."""
        self._limit_startup(self.definition.startup_timeout_secs)

    def _limit_startup(self, limit_s: int) -> None:
        if self._startup_timer is not None:
            self._startup_timer.cancel()
        self.startup_limit_s = limit_s
        loop = asyncio.get_running_loop()
        self._startup_timer = loop.call_later(limit_s, self._on_startup_timeout)

    def _on_startup_timeout(self) -> None:
        if not self.ready:
            self.end("startup_timeout")
            self.kill()

    def end(self, reason: EndReason) -> None:
        """Pass no more inputs to this container; if it runs none, it exits."""
        self.stopping = True
        self.end_reason = self.end_reason or reason
        self._inputs.notify()

    def interrupt(self, reason: EndReason, grace_s: float) -> None:
        """Send SIGINT, as Modal does in a preemption, and SIGKILL after the grace period."""
        self.end(reason)
        self._signal(signal.SIGINT)
        self.kill_after(grace_s)

    def kill_after(self, grace_s: float) -> None:
        """Kill it after a time unless it has ended."""
        if self._kill_timer is None:
            loop = asyncio.get_running_loop()
            self._kill_timer = loop.call_later(grace_s, self.kill)

    def kill(self) -> None:
        """Kill all its processes; none of them acts on the end of another."""
        self.stopping = True
        if not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)
        for pid in self.processes():
            if pid != self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def processes(self) -> list[int]:
        """Return the ids of the container's processes, as far as this machine shows them."""
        return self.sandbox.processes(self.pid) if self.sandbox is not None else []

    def cancel_inputs(self, input_ids: list[str]) -> None:
        """Cancel inputs, by the reply to the container's heartbeat."""
        self.cancelled_input_ids += input_ids
        self.cancellations.notify()

    async def clean_up(self) -> None:
        """Kill remaining processes, and close and delete everything of the container."""
        for timer in (self._kill_timer, self._startup_timer):
            if timer is not None:
                timer.cancel()
        # remaining processes in its group would keep its pipes and volumes open
        self.kill()
        for execution in self.executions.values():
            execution.kill()
        self.read_output()
        for pipe in self._pipes:
            pipe.close()
        if self._server is not None:
            self._server.close()
        if self.sandbox is not None and self._built is not None:
            await asyncio.to_thread(self.sandbox.keep_files, self._built.files)
        if self.sandbox is not None:
            await asyncio.to_thread(self.sandbox.close)
        await asyncio.to_thread(shutil.rmtree, self.place.folder, True)


async def launch_container(
    container: Container, launcher: Launcher, make_server: Callable[[str], RpcServer]
) -> None:
    """Prepare and spawn a container."""
    launch = await launcher.prepare(container.function, container.place)
    await container.spawn(launch, make_server(container.task_id))
