"""Sweeps whose controller is in a container on Modal, as commands."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ml_experiments.backends.modal.detached.volume_folder import list_folders
from ml_experiments.backends.modal.plan import IDLE_S
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.detached.on_modal import (
    _request,
    bring_sweep_here,
    bring_sweeps_here,
    call_of,
    can_be_on_modal,
    stop_on_modal,
)
from ml_experiments.runner.sweeps.folder import SweepFolder, find_sweep
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from ml_experiments.runner.sweeps.search_space.space import read_space
from modal_emulator import Emulator
from modal_emulator.control.info import ContainerInfo
from tests.support.modal_runs import (
    WAIT_S,
    handed_out_usd,
    most_usd_of_controller,
    most_usd_per_s_on,
    run_command,
)
from tests.support.waiting import wait_until

TRAIN = """
import os, time
from near_by import FACTOR

def train(lr: float, note: str = ""):
    while lr > 1:  # it has to be stopped
        time.sleep(0.05)
    return {"loss": lr * FACTOR, "on": os.environ["MODAL_EMULATOR_GPU"]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(TRAIN)
    (tmp_path / "near_by.py").write_text("FACTOR = 2\n")
    return tmp_path


def goes_on(folder: SweepFolder) -> bool:
    call = call_of(folder)
    assert call is not None
    return call.goes_on()


def functions_of(emulator: Emulator, folder: SweepFolder) -> set[str]:
    """Return the ids of the functions of a sweep's controller and of its points."""
    names = {f"ml-experiments-sweep-{folder.path.name}"}
    names |= {f"ml-experiments-{spec.parent.name}" for spec in folder.runs_dir.glob("*/spec.json")}
    found = [f for name in ("control_sweep", "run_remote") for f in emulator.functions(name)]
    return {f.function_id for f in found if f.app_name in names}


def controllers_of(emulator: Emulator, folder: SweepFolder) -> list[ContainerInfo]:
    return [
        each
        for each in emulator.containers()
        if each.function_name == "control_sweep"
        and each.function_id in functions_of(emulator, folder)
        and each.running_input_ids
    ]


def statuses(folder: SweepFolder) -> dict[str, str]:
    bring_sweep_here(folder.path.name, folder.runs_dir)
    return {p.overrides[0]: str(p.result.status) for p in recorded_points(folder)}


def test_a_sweep_on_modal_needs_neither_its_client_nor_its_first_container(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sweep", "mine.train", "lr=0.1,2.0", "--gpu", "t4", "--parallel", "2")
    begun = run_command(modal_emulator, project, *arguments, "--detach", "--json")
    assert begun.returncode == 0, begun.stderr
    # the client has ended
    folder = find_sweep(runs_dir, json.loads(begun.stdout)["sweep_id"])
    both = {"lr=0.1": "success", "lr=2.0": "running"}
    wait_until(lambda: statuses(folder) == both, "the first result")
    [container] = [
        each
        for each in modal_emulator.containers()
        if each.function_name == "control_sweep" and each.state == "running"
    ]
    modal_emulator.kill(container.task_id)

    refused = run_command(modal_emulator, project, "sweep", "resume", "last")
    assert refused.returncode == 2
    assert "goes on in a container on Modal; stop it first" in refused.stderr
    stop_on_modal(folder)
    wait_until(lambda: not goes_on(folder), "the end of the sweep")
    assert statuses(folder) == {"lr=0.1": "success", "lr=2.0": "cancelled"}
    assert folder.read_stop() == "it was stopped by `ml-experiments sweep stop`"
    points = recorded_points(folder)
    assert len(list(runs_dir.glob("*/spec.json"))) == 2  # no point ran twice
    assert points[0].result.results == {"loss": 0.2, "on": "T4"}
    assert points[0].cost_usd > 0

    # another machine of the same account
    elsewhere = runs_dir.with_name(f"{runs_dir.name}-elsewhere")
    [there] = [f for f in bring_sweeps_here(elsewhere) if f.path.name == folder.path.name]
    assert [p.result.to_dict() for p in recorded_points(there)] == [
        {**p.result.to_dict(), "run_dir": str(elsewhere / p.result.run_id)} for p in points
    ]

    # what is removed there doesn't come back, whichever machine removes it
    first, second = (p.result.run_id for p in points)
    rm = ("runs", "rm", "--from", "both", "--yes")
    with monkeypatch.context() as patch:
        patch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(elsewhere))
        assert run_command(modal_emulator, project, *rm, first).returncode == 0
    assert list_folders(f".sweeps/{folder.path.name}") == [second, "sweeps"]
    assert run_command(modal_emulator, project, *rm, second).returncode == 0
    assert folder.path.name not in list_folders(".sweeps")


CAPPED = """
import socket

def train(lr: float, port: int):
    with socket.create_connection(("127.0.0.1", port)) as test:
        test.sendall(str(lr).encode())
        test.recv(1)  # until the test lets it go on
    return {"loss": lr}
"""


def test_a_cap_holds_where_the_points_are_started(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text(CAPPED)
    usd_per_s = most_usd_per_s_on("t4")
    max_cost = 700 * usd_per_s
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)

        def meet() -> tuple[float, socket.socket]:
            connection, _ = server.accept()
            return float(connection.recv(100)), connection

        port = server.getsockname()[1]
        arguments = ("mine.train", "lr=0.1,0.2,0.3", f"port={port}", "--gpu", "t4")
        sweep = ("sweep", *arguments, "--parallel", "2", "--max-cost", str(max_cost))
        begun = run_command(modal_emulator, tmp_path, *sweep, "--detach", "--json")
        assert begun.returncode == 0, begun.stderr
        assert "of the cap is reserved until its outcome is here" in begun.stderr
        folder = find_sweep(runs_dir, json.loads(begun.stdout)["sweep_id"])
        spent_usd = lambda: open_ledger().spent_usd(f"sweep:{folder.path.name}")  # noqa: E731
        assert spent_usd() == pytest.approx(max_cost)
        held = dict([meet(), meet()])
        assert set(held) == {0.1, 0.2}
        [first] = controllers_of(modal_emulator, folder)
        modal_emulator.kill(first.task_id)

        def is_replaced() -> bool:
            now = [each.task_id for each in controllers_of(modal_emulator, folder)]
            return now not in ([], [first.task_id])

        wait_until(is_replaced, "another controller")
        for connection in held.values():
            connection.send(b"x")
        number, connection = meet()  # once the money of one of the others is counted
        assert number == 0.3
        connection.send(b"x")
        wait_until(lambda: not goes_on(folder), "the end of the sweep")
    assert set(statuses(folder).values()) == {"success"}
    ours = [
        each
        for each in modal_emulator.containers()
        if each.function_id in functions_of(modal_emulator, folder)
    ]
    assert handed_out_usd(ours) <= spent_usd() < max_cost
    limits = [
        (f.startup_timeout_s + f.timeout_s + IDLE_S) * usd_per_s
        for f in modal_emulator.functions("run_remote")
        if f.function_id in functions_of(modal_emulator, folder)
    ]
    assert limits
    own_usd = most_usd_of_controller(modal_emulator, "control_sweep", folder.path.name)
    assert 2 * max(limits) + own_usd < max_cost * (1 + 1e-6)
    assert max(limits) < max_cost / 2


def test_a_controller_gets_the_secrets_in_the_sweep_and_no_others() -> None:
    spec = plan_sweep(f"{__file__}:goes_on", read_space(["lr=1", "note=hunter2-hunter2"]))
    assert _request(spec, ("hunter2-hunter2", "another", ""))["secrets"] == ["hunter2-hunter2"]


@pytest.mark.parametrize(
    ("options", "there"),
    [({}, True), ({"max_cost": 1.0}, True), ({"reuse": True}, False)],
    ids=["no cap", "cap", "reuse"],
)
def test_runs_are_used_again_where_they_are(options: dict[str, float], there: bool) -> None:
    spec = plan_sweep(f"{__file__}:goes_on", read_space(["lr=1"]), backend="modal", **options)  # type: ignore[arg-type]
    assert can_be_on_modal(spec) is there
