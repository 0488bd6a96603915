"""`Emulator`: a local Modal server in a background thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from modal_emulator.containers.sandbox import SandboxMode
from modal_emulator.control.control import Control
from modal_emulator.server import ImageMode, Server, ServerOptions, image_mode
from modal_emulator.storage.temporary_folders import (
    STATE_PREFIX,
    TemporaryFolder,
    delete_abandoned_folders,
)

P = ParamSpec("P")
T = TypeVar("T")

_CALL_S = 30.0
_STOP_S = 60.0


def _in_server_thread(
    method: Callable[Concatenate[Control, P], T],
) -> Callable[Concatenate[Emulator, P], T]:
    """Return the method of `Emulator` that calls a method of the server's `Control`."""

    @wraps(method)
    def call(emulator: Emulator, /, *args: P.args, **kwargs: P.kwargs) -> T:
        control = emulator._running().control

        async def run() -> T:
            return method(control, *args, **kwargs)

        assert emulator._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), emulator._loop).result(_CALL_S)

    return call


class Emulator:
    """A local Modal server that runs as long as a `with` block.

    Programs find it by the environment variables in `environment`. The methods read its state
    (`functions`, `calls`, …) and inject faults (`preempt`, `limit_gpu`, …); `Control` has their
    documentation.
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
        images: ImageMode | None = None,
    ) -> None:
        """Set the options of the server, which the `with` block starts.

        Args:
            state_dir: Folder that keeps volumes, secrets, deployed apps and the results of calls
                from one start to the next. Default: a temporary one.
            port: Port on 127.0.0.1; 0 takes a free one.
            stop_grace_s: Time after which a container that is stopped is killed.
            reconnect_s: Time without a connection after which a client counts as gone.
            heartbeat_limit_s: Time without a heartbeat after which a client counts as gone;
                clients send one every 15 seconds.
            commit_every_s: Interval of the background commits of volumes.
            sandbox_mode: Isolation of containers. Default: the best that this machine supports.
            images: "build" builds images, each with packages of its own; "record" only records
                them, and containers have the packages of this environment. Default: the variable
                MODAL_EMULATOR_IMAGES; without it, images are built where uv is there.
        """
        self._given_state_dir = Path(state_dir) if state_dir is not None else None
        self._options = ServerOptions(
            port=port,
            stop_grace_s=stop_grace_s,
            reconnect_s=reconnect_s,
            heartbeat_limit_s=heartbeat_limit_s,
            commit_every_s=commit_every_s,
            sandbox_mode=sandbox_mode,
            images=images or image_mode(os.environ.get("MODAL_EMULATOR_IMAGES")),
        )
        self._temporary: TemporaryFolder | None = None
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the server.

        Raises:
            UnsupportedModalError: If the installed version of modal is outside the tested range.
            StateInUseError: If another emulator uses the state folder.
            OSError: If the port is taken.
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
        """Stop all containers and the server."""
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
        except BaseException as e:  # noqa: BLE001 - raised in the thread that waits
            ready.set_exception(e)
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

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which programs find this server."""
        return client_environment(self._running())

    functions = _in_server_thread(Control.functions)
    calls = _in_server_thread(Control.calls)
    containers = _in_server_thread(Control.containers)
    apps = _in_server_thread(Control.apps)
    images = _in_server_thread(Control.images)
    logs = _in_server_thread(Control.logs)

    tick = _in_server_thread(Control.tick)
    age_results = _in_server_thread(Control.age_results)
    preempt = _in_server_thread(Control.preempt)
    kill = _in_server_thread(Control.kill)
    preempt_input = _in_server_thread(Control.preempt_input)
    kill_input = _in_server_thread(Control.kill_input)
    delay_starts = _in_server_thread(Control.delay_starts)
    fail_rpc = _in_server_thread(Control.fail_rpc)
    delay_rpc = _in_server_thread(Control.delay_rpc)
    fail_image_builds = _in_server_thread(Control.fail_image_builds)
    limit_gpu = _in_server_thread(Control.limit_gpu)
    limit_volume = _in_server_thread(Control.limit_volume)
    clear_faults = _in_server_thread(Control.clear_faults)


def client_environment(server: Server) -> dict[str, str]:
    """Return the environment variables by which a program finds a server."""
    loopback = "127.0.0.1,localhost"
    no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    bypass = f"{no_proxy},{loopback}" if no_proxy else loopback
    return {
        "MODAL_SERVER_URL": server.url,
        "MODAL_TOKEN_ID": server.token_id,
        "MODAL_TOKEN_SECRET": server.token_secret,
        # so that the user's own profiles are neither used nor changed by `modal token set`
        "MODAL_CONFIG_PATH": str(server.state_dir / "modal.toml"),
        "MODAL_DISABLE_API_PROXY": "1",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "MODAL_EMULATOR_CONTROL_URL": f"{server.http.url}/control",
    }
