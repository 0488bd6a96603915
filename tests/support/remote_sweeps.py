"""What the tests of sweeps that are controlled on Modal share."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.detached.remote_sweeps import bring_sweep_here, goes_on_there
from ml_experiments.runner.sweeps.folder import SweepFolder, find_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from modal_emulator import Emulator
from modal_emulator.control.info import ContainerInfo
from tests.support.modal_runs import WAIT_S, run_command
from tests.support.waiting import wait_until

# connects to the test, which says what becomes of it: `x` for success
MEETING = """
import socket
from ml_experiments import current_run

def train(lr: float, port: int):
    (current_run().output_dir / "lr.txt").write_text(str(lr))
    with socket.create_connection(("127.0.0.1", port)) as test:
        test.sendall(str(lr).encode())
        if test.recv(1) != b"x":
            raise ValueError("the test said no")
    return {"loss": lr}
"""


class Meetings:
    """Where the points of a sweep connect to.

    Attributes:
        port: Where it is.
    """

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.port: int = server.getsockname()[1]

    def next(self) -> tuple[float, socket.socket]:
        """Return the `lr` of the point that connects next, and its connection."""
        connection, _ = self._server.accept()
        return float(connection.recv(100)), connection

    def answer(self, number: float, answer: bytes) -> None:
        """Let the next point end, which has to be this one."""
        found, connection = self.next()
        assert found == number
        connection.send(answer)


@contextlib.contextmanager
def meetings() -> Iterator[Meetings]:
    """Wait for points for a block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        yield Meetings(server)


def begin_detached(
    emulator: Emulator, project: Path, runs_dir: Path, *arguments: str
) -> SweepFolder:
    """Return the folder of a sweep that was started, or taken up, with --detach."""
    begun = run_command(emulator, project, "sweep", *arguments, "--detach", "--json")
    assert begun.returncode == 0, begun.stderr
    return find_sweep(runs_dir, json.loads(begun.stdout)["sweep_id"])


def wait_for_end(folder: SweepFolder) -> None:
    """Return when no controller on Modal runs a sweep any more."""
    wait_until(lambda: not goes_on_there(folder), "the end of the sweep")


def statuses(folder: SweepFolder) -> dict[str, str]:
    """Return the statuses of the points, once what is on Modal was brought here."""
    bring_sweep_here(folder.path.name, folder.runs_dir)
    return {p.overrides[0]: str(p.result.status) for p in recorded_points(folder)}


def spent_usd(folder: SweepFolder) -> float:
    """Return what a sweep has spent by the ledger of this machine, reservations included."""
    return open_ledger().spent_usd(f"sweep:{folder.path.name}")


def functions_of(emulator: Emulator, folder: SweepFolder) -> set[str]:
    """Return the ids of the functions of a sweep's controllers and of its points."""
    names = {f"ml-experiments-sweep-{folder.path.name}"}
    names |= {f"ml-experiments-{spec.parent.name}" for spec in folder.runs_dir.glob("*/spec.json")}
    found = [f for name in ("control_sweep", "run_remote") for f in emulator.functions(name)]
    return {f.function_id for f in found if f.app_name in names}


def containers_of(emulator: Emulator, folder: SweepFolder) -> list[ContainerInfo]:
    """Return the containers of a sweep's controllers and of its points."""
    ids = functions_of(emulator, folder)
    return [each for each in emulator.containers() if each.function_id in ids]


def controllers_of(emulator: Emulator, folder: SweepFolder) -> list[ContainerInfo]:
    """Return the containers in which the sweep's controller is at work."""
    return [
        each
        for each in containers_of(emulator, folder)
        if each.function_name == "control_sweep" and each.running_input_ids
    ]


def replace_controller(emulator: Emulator, folder: SweepFolder) -> None:
    """Kill the container of a sweep's controller; return when another one has taken over."""
    [first] = controllers_of(emulator, folder)
    emulator.kill(first.task_id)
    wait_for_another(emulator, folder, first)


def wait_for_another(emulator: Emulator, folder: SweepFolder, first: ContainerInfo) -> None:
    """Return when another container controls a sweep than the first one."""

    def is_replaced() -> bool:
        now = [each.task_id for each in controllers_of(emulator, folder)]
        return now not in ([], [first.task_id])

    wait_until(is_replaced, "another controller")
