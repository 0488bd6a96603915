"""`modal-emulator run` and `modal-emulator serve`, also as `ml-experiments emulator …`."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modal_emulator.containers.interpreter import INTERPRETER
from modal_emulator.rpc.versions import UnsupportedModalError
from modal_emulator.storage.state import StateInUseError

if TYPE_CHECKING:
    from modal_emulator.emulator import Emulator
    from modal_emulator.server import ImageMode

# Modal's own, between the SIGINT and the SIGKILL of a preemption
_DEFAULT_GRACE_S = 30.0
_DETACHED_POLL_S = 0.2
_TICK_S = 30.0


@click.group()
def emulator() -> None:
    """Run Modal programs against a local Modal server: no account, no network, no cost.

    Containers are processes of this machine that run Modal's own container entrypoint.
    """


_SHARED = [
    click.option(
        "--state",
        "state_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder that keeps volumes, secrets, deployed apps and call results. "
        "Default: a temporary one.",
    ),
    click.option(
        "--delay-starts",
        "delay_starts_s",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Delay the start of every container.",
    ),
    click.option(
        "--fail-rpc",
        "failing_rpcs",
        multiple=True,
        metavar="NAME[:NTH[:STATUS]]",
        help="Fail the n-th call of an RPC, such as FunctionMap:2:UNAVAILABLE.",
    ),
    click.option(
        "--delay-rpc",
        "delayed_rpcs",
        multiple=True,
        metavar="NAME=SECONDS",
        help="Delay every call of an RPC, such as ImageGetOrCreate=60.",
    ),
    click.option(
        "--limit-gpu",
        "gpu_limits",
        multiple=True,
        metavar="TYPE=COUNT",
        help="How many GPUs of a type exist; H100=0 is out of capacity.",
    ),
    click.option(
        "--full-volume",
        "volume_limits",
        multiple=True,
        metavar="NAME=BYTES",
        help="Limit the size of a volume, which is full when it is reached.",
    ),
    click.option(
        "--images",
        type=click.Choice(["build", "record"]),
        help="Build images, each with packages of its own, or only record them. "
        "Default: build where uv is there; the variable MODAL_EMULATOR_IMAGES changes it.",
    ),
    click.option("--fail-image-builds", metavar="MESSAGE", help="Fail every image build."),
    click.option(
        "--preempt-input",
        type=click.IntRange(min=1),
        metavar="NTH",
        help="Preempt the container that gets the n-th input; the input runs again.",
    ),
    click.option(
        "--kill-input",
        type=click.IntRange(min=1),
        metavar="NTH",
        help="Kill the container that gets the n-th input, as a crash would.",
    ),
    click.option(
        "--after",
        "after_s",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Time between that input and the preemption or kill. Default: 0.",
    ),
    click.option(
        "--grace",
        "grace_s",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Time between a preemption's SIGINT and SIGKILL. Default: 30.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log what the server does."),
]


def _shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@emulator.command()
@_shared_options
@click.option(
    "--end-detached",
    is_flag=True,
    help="End the calls that COMMAND has detached, instead of waiting for them.",
)
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], *, end_detached: bool, **options: Any) -> None:
    """Run COMMAND against a server that lives as long as it.

    \b
    ml-experiments emulator run -- modal run app.py
    ml-experiments emulator run --limit-gpu H100=0 -- python train.py

    The exit code is the command's. Calls that it has detached or spawned in a deployed app are
    waited for, until Ctrl-C.
    """
    # `modal` is next to this Python, which need not be on the PATH
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(INTERPRETER.parent)])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise click.UsageError(f'There is no command "{command[0]}" on the PATH.')
    with _running_emulator(**options) as emulator:
        environment = {**os.environ, **emulator.environment, "PATH": path}
        try:
            process = subprocess.Popen([program, *command[1:]], env=environment)
        except OSError as e:
            raise click.UsageError(f"{program} can't be started: {e.strerror}.") from e
        with _signal_handler(lambda signum: _forward(signum, process)):
            exit_code = process.wait()
        _leave_detached(emulator, wait=not end_detached)
    # as a shell reports a program that a signal ended
    click.get_current_context().exit(exit_code if exit_code >= 0 else 128 - exit_code)


@emulator.command()
@_shared_options
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Default: a free one.")
def serve(**options: Any) -> None:
    """Serve until Ctrl-C, and print the variables that point programs here.

    \b
    ml-experiments emulator serve --state ./modal-state > modal.env &
    source modal.env && modal deploy app.py
    """
    stopped = threading.Event()
    with (
        _signal_handler(lambda _signum: stopped.set()),
        _running_emulator(**options) as emulator,
    ):
        for name, value in emulator.environment.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        stopped.wait()


@emulator.command()
@click.argument("function", required=False)
def tick(function: str | None) -> None:
    """Call the functions that have a schedule, or one of them, as if it was due.

    On the server of `serve`, whose variables are in the environment. No clock calls them.
    """
    url = os.environ.get("MODAL_EMULATOR_CONTROL_URL")
    if url is None:
        raise click.UsageError(
            "No server is known here: set the variables that `modal-emulator serve` prints."
        )
    request = urllib.request.Request(
        f"{url}/tick",
        data=json.dumps({"function_name": function}).encode(),
        headers={"Authorization": f"Bearer {os.environ.get('MODAL_TOKEN_SECRET', '')}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TICK_S) as answer:
            call_ids = json.load(answer)
    except urllib.error.HTTPError as e:
        raise click.ClickException(e.read().decode(errors="replace")) from e
    except OSError as e:
        raise click.ClickException(f"The server at {url} doesn't answer: {e}") from e
    for call_id in call_ids:
        click.echo(call_id)


@contextmanager
def _running_emulator(
    state_dir: Path | None,
    *,
    port: int = 0,
    images: ImageMode | None = None,
    verbose: bool,
    **faults: Any,
) -> Iterator[Emulator]:
    from modal_emulator.emulator import Emulator  # takes a third of a second: not for --help

    logging.basicConfig(level=logging.WARNING, format="emulator: %(message)s")
    if verbose:
        logging.getLogger("modal_emulator").setLevel(logging.INFO)
    with ExitStack() as stack:
        try:
            emulator = stack.enter_context(Emulator(state_dir, port=port, images=images))
            _inject_faults(emulator, **faults)
        except (OSError, StateInUseError, UnsupportedModalError, ValueError) as e:
            raise click.UsageError(str(e)) from e
        yield emulator


def _inject_faults(
    emulator: Emulator,
    *,
    delay_starts_s: float,
    failing_rpcs: tuple[str, ...],
    delayed_rpcs: tuple[str, ...],
    gpu_limits: tuple[str, ...],
    volume_limits: tuple[str, ...],
    fail_image_builds: str | None,
    preempt_input: int | None,
    kill_input: int | None,
    after_s: float | None,
    grace_s: float | None,
) -> None:
    if after_s is not None and preempt_input is None and kill_input is None:
        raise ValueError("--after has an effect with --preempt-input or --kill-input only.")
    if grace_s is not None and preempt_input is None:
        raise ValueError("--grace has an effect with --preempt-input only.")
    emulator.delay_starts(delay_starts_s)
    emulator.fail_image_builds(fail_image_builds)
    for entry in failing_rpcs:
        name, _, rest = entry.partition(":")
        nth, _, status = rest.partition(":")
        status = status.upper() or "UNAVAILABLE"
        emulator.fail_rpc(name, nth=_whole_number(nth or "1", entry), status=status)
    for entry in delayed_rpcs:
        emulator.delay_rpc(*_assignment(entry))
    for entry in gpu_limits:
        emulator.limit_gpu(*_assignment(entry))
    for entry in volume_limits:
        name, max_bytes = _assignment(entry)
        emulator.limit_volume(name, max_bytes=max_bytes)
    if preempt_input is not None:
        grace_s = _DEFAULT_GRACE_S if grace_s is None else grace_s
        emulator.preempt_input(preempt_input, after_s=after_s or 0.0, grace_s=grace_s)
    if kill_input is not None:
        emulator.kill_input(kill_input, after_s=after_s or 0.0)


def _leave_detached(emulator: Emulator, *, wait: bool) -> None:
    """Wait for the calls that go on without the command, or say that they are ended."""
    unfinished = _unfinished_calls(emulator)
    if not unfinished:
        return
    names = ", ".join(unfinished)
    if not wait:
        click.echo(f"emulator: ends what was detached: {names}.", err=True)
        return
    click.echo(f"emulator: waits for what was detached: {names}. Ctrl-C ends it.", err=True)
    interrupted = threading.Event()
    with _signal_handler(lambda _signum: interrupted.set()):
        while _unfinished_calls(emulator) and not interrupted.wait(_DETACHED_POLL_S):
            pass


def _unfinished_calls(emulator: Emulator) -> list[str]:
    """Return the unfinished calls of apps that outlive their client, as `FUNCTION (CALL)`."""
    lasting = {
        app.app_id
        for app in emulator.apps()
        if app.state in ("deployed", "detached", "detached_disconnected")
    }
    return [
        f"{call.function_name} ({call.call_id})"
        for call in emulator.calls()
        if call.app_id in lasting and any(not each.status for each in call.inputs)
    ]


def _assignment(entry: str) -> tuple[str, int]:
    name, equals, number = entry.partition("=")
    if not equals:
        raise ValueError(f'"{entry}" is not of the form NAME=NUMBER, such as H100=0.')
    return name, _whole_number(number, entry)


def _whole_number(digits: str, entry: str) -> int:
    if not digits.isdigit():
        raise ValueError(f'"{digits}" in "{entry}" is not a whole number of 0 or more.')
    return int(digits)


@contextmanager
def _signal_handler(handle: Callable[[int], None]) -> Iterator[None]:
    """Call a function on the signals that otherwise end this process."""
    previous = {
        signum: signal.signal(signum, lambda signum, _frame: handle(signum))
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _forward(signum: int, process: subprocess.Popen[bytes]) -> None:
    # Ctrl-C in a terminal goes to the command as well as to this process
    if signum != signal.SIGINT or not sys.stdin.isatty():
        process.send_signal(signum)


def main() -> None:
    """Run the command line and exit."""
    emulator(prog_name="modal-emulator")
