"""`modal-emulator run` and `modal-emulator serve`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from modal_emulator.requested_faults import RequestedFaults


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
        help="Let every container start later.",
    ),
    click.option(
        "--fail-rpc",
        multiple=True,
        metavar="NAME[:NTH[:STATUS]]",
        help="Fail the n-th call of an RPC, such as FunctionMap:2:UNAVAILABLE.",
    ),
    click.option(
        "--delay-rpc",
        multiple=True,
        metavar="NAME=SECONDS",
        help="Let every call of an RPC take longer, such as ImageGetOrCreate=60.",
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
        "full_volumes",
        multiple=True,
        metavar="NAME=BYTES",
        help="Let a volume be full beyond a size.",
    ),
    click.option("--fail-image-builds", metavar="MESSAGE", help="Let every image build fail."),
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
        help="How long after it got the input it is preempted or killed. Default: at once.",
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


def _configure_logging(verbose: bool) -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="emulator: %(message)s")
    if verbose:
        logging.getLogger("modal_emulator").setLevel(logging.INFO)


def _requested(faults: dict[str, Any]) -> RequestedFaults:
    from modal_emulator.requested_faults import RequestedFaults

    return RequestedFaults(**faults)


@emulator.command()
@_shared_options
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], state_dir: Path | None, verbose: bool, **faults: Any) -> int:
    """Run COMMAND against a server that lives as long as it.

    \b
    ml-experiments emulator run -- modal run app.py
    ml-experiments emulator run --limit-gpu H100=0 -- python train.py

    The exit code is the command's.
    """
    from modal_emulator.commands import CommandNotFoundError, run_command
    from modal_emulator.rpc.versions import UnsupportedModalError
    from modal_emulator.storage.state import StateInUseError

    _configure_logging(verbose)
    try:
        return run_command(command, state_dir=state_dir, faults=_requested(faults))
    except (CommandNotFoundError, StateInUseError, UnsupportedModalError, ValueError) as error:
        raise click.UsageError(str(error)) from error


@emulator.command()
@_shared_options
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Default: a free one.")
def serve(port: int, state_dir: Path | None, verbose: bool, **faults: Any) -> None:
    """Serve until Ctrl-C, and print the variables that point programs here.

    \b
    ml-experiments emulator serve --state ./modal-state > modal.env &
    source modal.env && modal deploy app.py
    """
    from modal_emulator.commands import serve as serve_until_stopped
    from modal_emulator.rpc.versions import UnsupportedModalError
    from modal_emulator.storage.state import StateInUseError

    _configure_logging(verbose)
    try:
        serve_until_stopped(click.echo, state_dir=state_dir, port=port, faults=_requested(faults))
    except (StateInUseError, UnsupportedModalError, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error


def main() -> None:
    """Run the command line and exit."""
    sys.exit(emulator.main(prog_name="modal-emulator", standalone_mode=False) or 0)
