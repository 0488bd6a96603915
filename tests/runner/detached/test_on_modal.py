"""Sweeps whose controller is in a container on Modal, as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.backends.modal.detached.volume_folder import list_folders
from ml_experiments.backends.modal.plan import IDLE_S
from ml_experiments.runner.detached import allowance
from ml_experiments.runner.detached.remote_sweeps import bring_sweeps_here, stop_on_modal
from ml_experiments.runner.detached.sweep_on_modal import (
    _request,
    can_be_on_modal,
    start_sweep_on_modal,
)
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from ml_experiments.runner.sweeps.search_space.space import read_space
from modal_emulator import Emulator
from tests.support.modal_runs import (
    handed_out_usd,
    most_usd_of_controller,
    most_usd_per_s_on,
    run_command,
)
from tests.support.remote_sweeps import (
    MEETING,
    begin_detached,
    containers_of,
    controllers_of,
    functions_of,
    meetings,
    replace_controller,
    spent_usd,
    statuses,
    wait_for_another,
    wait_for_end,
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


def test_a_sweep_on_modal_needs_neither_its_client_nor_its_first_container(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("mine.train", "lr=0.1,2.0", "--gpu", "t4", "--parallel", "2")
    folder = begin_detached(modal_emulator, project, runs_dir, *arguments)
    # the client has ended
    both = {"lr=0.1": "success", "lr=2.0": "running"}
    wait_until(lambda: statuses(folder) == both, "the first result")
    # its point is no idle container, also where its run has not come here yet
    [running] = [p.result for p in recorded_points(folder) if p.result.status == "running"]
    shutil.rmtree(runs_dir / running.run_id)
    idle = run_command(modal_emulator, project, "costs", "idle", "--json")
    assert running.run_id not in str(json.loads(idle.stdout)["apps"])
    replace_controller(modal_emulator, folder)

    refused = run_command(modal_emulator, project, "sweep", "resume", "last")
    assert refused.returncode == 2
    assert "goes on in a container on Modal; stop it first" in refused.stderr
    stop_on_modal(folder)
    wait_for_end(folder)
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


def test_a_controller_that_modal_ends_after_its_day_is_replaced(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "mine.py").write_text(MEETING)
    monkeypatch.chdir(project)
    monkeypatch.setattr(allowance, "MAX_TIMEOUT_S", 12)  # instead of 24 h
    with meetings() as met:
        space = read_space(("lr=0.1,0.2", f"port={met.port}"), None)
        spec = plan_sweep("mine.train", space, backend="modal", gpu="t4", parallel=1)
        folder = start_sweep_on_modal(spec, runs_dir)
        number, held = met.next()
        [first] = controllers_of(modal_emulator, folder)
        wait_for_another(modal_emulator, folder, first)
        held.send(b"x")
        met.answer(0.2 if number == 0.1 else 0.1, b"x")
    wait_for_end(folder)
    assert set(statuses(folder).values()) == {"success"}
    assert len(list(runs_dir.glob("*/spec.json"))) == 2  # no point ran twice


def test_a_cap_holds_where_the_points_are_started(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text(MEETING)
    usd_per_s = most_usd_per_s_on("t4")
    max_cost = 700 * usd_per_s
    with meetings() as points:
        arguments = ("mine.train", "lr=0.1,0.2,0.3", f"port={points.port}", "--gpu", "t4")
        cap = ("--parallel", "2", "--max-cost", str(max_cost))
        begun = run_command(modal_emulator, tmp_path, "sweep", *arguments, *cap, "--detach")
        assert begun.returncode == 0, begun.stderr
        assert "of the cap is reserved until its outcome is here" in begun.stdout
        folder = find_sweep(runs_dir, "last")
        assert spent_usd(folder) == pytest.approx(max_cost)
        held = dict([points.next(), points.next()])
        assert set(held) == {0.1, 0.2}
        replace_controller(modal_emulator, folder)
        for connection in held.values():
            connection.send(b"x")
        points.answer(0.3, b"x")  # once the money of one of the others is counted
        wait_for_end(folder)
    assert set(statuses(folder).values()) == {"success"}
    ours = containers_of(modal_emulator, folder)
    assert handed_out_usd(ours) <= spent_usd(folder) < max_cost
    limits = [
        (f.startup_timeout_s + f.timeout_s + IDLE_S) * usd_per_s
        for f in modal_emulator.functions("run_remote")
        if f.function_id in functions_of(modal_emulator, folder)
    ]
    assert limits
    own_usd = most_usd_of_controller(modal_emulator, "control_sweep", folder.path.name)
    assert 2 * max(limits) + own_usd < max_cost * (1 + 1e-6)
    assert max(limits) < max_cost / 2


def test_a_point_is_noted_before_it_starts(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text(MEETING)
    with meetings() as points:
        start = ("mine.train", "lr=0.1,0.2", f"port={points.port}", "--gpu", "t4", "--parallel=1")
        folder = begin_detached(modal_emulator, tmp_path, runs_dir, *start)
        for count in (1, 2):
            found, connection = points.next()
            assert found in (0.1, 0.2)
            # whoever takes over finds it; the next one may wait on Modal already
            noted = set(list_folders(f".sweeps/{folder.path.name}")) - {"sweeps"}
            assert count <= len(noted) <= 2
            connection.send(b"x")
        wait_for_end(folder)
    assert set(statuses(folder).values()) == {"success"}


def point(lr: float) -> float:
    return lr


def test_a_controller_gets_the_secrets_in_the_sweep_and_no_others() -> None:
    spec = plan_sweep(f"{__file__}:point", read_space(["lr=1", "note=hunter2-hunter2"]))
    assert _request(spec, ("hunter2-hunter2", "another", ""))["secrets"] == ["hunter2-hunter2"]


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({}, True),
        ({"max_cost": 1.0}, True),
        ({"reuse": True}, True),
        ({"sampler": "random", "trials": 2}, True),
        ({"sampler": "random", "trials": 2, "reuse": True}, False),
    ],
    ids=["no cap", "cap", "grid with reuse", "sampler", "sampler with reuse"],
)
def test_points_to_reuse_are_known_here_or_the_sweep_stays(
    options: dict[str, Any], there: bool
) -> None:
    spec = plan_sweep(f"{__file__}:point", read_space(["lr=1"]), backend="modal", **options)
    assert can_be_on_modal(spec) is there
