"""A server in a background thread, for tests and notebooks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from modal_emulator.apps.logs import LogLine
from modal_emulator.containers.sandbox import SandboxMode
from modal_emulator.control.infos import AppInfo, CallInfo, ContainerInfo, FunctionInfo
from modal_emulator.objects.images import ImageRecord
from modal_emulator.server import Server, ServerOptions
from modal_emulator.storage.temporary_folders import (
    STATE_PREFIX,
    TemporaryFolder,
    delete_abandoned_folders,
)

T = TypeVar("T")

_CALL_S = 30.0
_STOP_S = 60.0


class Emulator:
    """A local Modal server that lives as long as a `with` block.

    `state_dir` keeps volumes, secrets, deployed apps and finished call results from one start to
    the next; without it they are deleted at the end. Programs find the server by the variables in
    `environment`.
    """

    def __init__(
        self,
        state_dir: str | Path | None = None,
        *,
        port: int = 0,
        stop_grace_s: float = 5.0,
        reconnect_s: float = 2.0,
        heartbeat_limit_s: float = 50.0,
        commit_every_s: float = 3.0,
        sandbox_mode: SandboxMode | None = None,
    ) -> None:
        """Describe a server; entering the `with` block starts it.

        Args:
            state_dir: folder that keeps state from one start to the next.
            port: where to listen on 127.0.0.1; 0 takes a free port.
            stop_grace_s: how long a stopped container may take before it is killed.
            reconnect_s: how long a client may be without a connection before it counts as gone.
            heartbeat_limit_s: how long a client may send no heartbeat before it counts as gone.
            commit_every_s: how often volumes are committed without a container's asking.
            sandbox_mode: how to isolate containers; None is the best that this machine allows.
        """
        self._given_state_dir = Path(state_dir) if state_dir is not None else None
        self._options = ServerOptions(
            port=port,
            stop_grace_s=stop_grace_s,
            reconnect_s=reconnect_s,
            heartbeat_limit_s=heartbeat_limit_s,
            commit_every_s=commit_every_s,
            sandbox_mode=sandbox_mode,
        )
        self._temporary: TemporaryFolder | None = None
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the server.

        Raises:
            UnsupportedModalError: when the installed `modal` is a version that was not tested.
            StateInUseError: when another server uses the state folder.
            OSError: when the port is taken.
        """
        delete_abandoned_folders()
        state_dir = self._given_state_dir
        if state_dir is None:
            self._temporary = TemporaryFolder(STATE_PREFIX)
            state_dir = self._temporary.path
        ready: Future[Server] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(state_dir, ready)),
            name="modal-emulator",
            daemon=True,
        )
        self._thread.start()
        try:
            self._server = ready.result()
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop every container and the server."""
        self._running()
        assert self._loop is not None
        assert self._stop is not None
        self._server = None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._end_thread()

    def _end_thread(self) -> None:
        assert self._thread is not None
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise RuntimeError(f"The emulator did not stop within {_STOP_S} s.")
        if self._temporary is not None:
            self._temporary.delete()

    async def _serve(self, state_dir: Path, ready: Future[Server]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = Server(state_dir, self._options)
            await server.start()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            ready.set_exception(error)
            return
        ready.set_result(server)
        try:
            await self._stop.wait()
        finally:
            await server.stop()

    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("The emulator is not running: use `with Emulator() as emulator:`.")
        return self._server

    def _call(self, function: Callable[[Server], T]) -> T:
        """Run a function in the server's thread."""
        server = self._running()

        async def run() -> T:
            return function(server)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_CALL_S)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point the modal client, CLI and `control_url` at this server."""
        return client_environment(self._running())

    @property
    def control_url(self) -> str:
        """The address of the HTTP control."""
        return f"{self._running().http.url}/control"

    def functions(self, name: str | None = None) -> list[FunctionInfo]:
        """Return the functions and variants, of one name or all, as the server received them."""
        found = self._call(lambda server: server.control.inspection.functions())
        return [each for each in found if name is None or each.name == name]

    def calls(self, function_name: str | None = None) -> list[CallInfo]:
        """Return the calls, of one function or all."""
        found = self._call(lambda server: server.control.inspection.calls())
        return [each for each in found if function_name in (None, each.function_name)]

    def containers(self) -> list[ContainerInfo]:
        """Return every container since the server started, ended ones first."""
        return self._call(lambda server: server.control.inspection.containers())

    def apps(self) -> list[AppInfo]:
        """Return every app, oldest first."""
        return self._call(lambda server: server.control.inspection.apps())

    def images(self) -> list[ImageRecord]:
        """Return every image, oldest first."""
        return self._call(lambda server: server.control.inspection.images())

    def logs(self, app_id: str) -> list[LogLine]:
        """Return the log lines of an app in order."""
        return self._call(lambda server: server.control.inspection.logs(app_id))

    def preempt(self, task_id: str | None = None, *, grace_s: float = 30.0) -> list[str]:
        """Preempt a container, or all that run an input; see `Control.preempt`."""
        return self._call(lambda server: server.control.preempt(task_id, grace_s=grace_s))

    def kill(self, task_id: str | None = None) -> list[str]:
        """Kill a container, or all that run an input; see `Control.kill`."""
        return self._call(lambda server: server.control.kill(task_id))

    def preempt_input(self, nth: int = 1, *, after_s: float = 0.0, grace_s: float = 30.0) -> None:
        """Preempt whichever container gets the n-th input from now."""
        self._call(
            lambda server: server.control.preempt_input(nth, after_s=after_s, grace_s=grace_s)
        )

    def kill_input(self, nth: int = 1, *, after_s: float = 0.0) -> None:
        """Kill whichever container gets the n-th input from now."""
        self._call(lambda server: server.control.kill_input(nth, after_s=after_s))

    def delay_starts(self, seconds: float) -> None:
        """Let every container start that much later; 0 ends it."""
        self._call(lambda server: server.control.delay_starts(seconds))

    def fail_rpc(self, name: str, *, nth: int = 1, status: str = "UNAVAILABLE") -> None:
        """Fail the n-th call of an RPC from now with a gRPC status."""
        self._call(lambda server: server.control.fail_rpc(name, nth=nth, status=status))

    def delay_rpc(self, name: str, seconds: float) -> None:
        """Let every call of an RPC take so much longer; 0 ends it."""
        self._call(lambda server: server.control.delay_rpc(name, seconds))

    def fail_image_builds(self, message: str | None) -> None:
        """Let every image build fail with a message; None ends it."""
        self._call(lambda server: server.control.fail_image_builds(message))

    def limit_gpu(self, name: str, count: int | None) -> None:
        """Set how many GPUs of a type exist; 0 is out of capacity, None is without limit."""
        self._call(lambda server: server.control.limit_gpu(name, count))

    def limit_volume(
        self, name: str, *, max_bytes: int | None = None, max_files: int | None = None
    ) -> None:
        """Let a volume be full beyond a size or a number of files, in containers started later."""
        self._call(
            lambda server: server.control.limit_volume(
                name, max_bytes=max_bytes, max_files=max_files
            )
        )

    def clear_faults(self) -> None:
        """End every fault that is armed or lasts."""
        self._call(lambda server: server.control.clear_faults())


def client_environment(server: Server) -> dict[str, str]:
    """Return the variables by which a program finds a server."""
    loopback = "127.0.0.1,localhost"
    no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    bypass = f"{no_proxy},{loopback}" if no_proxy else loopback
    return {
        "MODAL_SERVER_URL": server.url,
        "MODAL_TOKEN_ID": server.token_id,
        "MODAL_TOKEN_SECRET": server.token_secret,
        # The user's own profiles stay out of it, and `modal token set` cannot change them.
        "MODAL_CONFIG_PATH": str(server.state_dir / "modal.toml"),
        "MODAL_DISABLE_API_PROXY": "1",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "MODAL_EMULATOR_CONTROL_URL": f"{server.http.url}/control",
    }
