"""Sweeps whose controller is in a container on Modal, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_experiments.backends.modal.detached.volume_folder import list_folders
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
from tests.support.modal_runs import run_command
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


def test_a_controller_gets_the_secrets_in_the_sweep_and_no_others() -> None:
    spec = plan_sweep(f"{__file__}:goes_on", read_space(["lr=1", "note=hunter2-hunter2"]))
    assert _request(spec, ("hunter2-hunter2", "another", ""))["secrets"] == ["hunter2-hunter2"]


@pytest.mark.parametrize(
    ("options", "there"),
    [({}, True), ({"max_cost": 1.0}, False), ({"reuse": True}, False)],
    ids=["no cap", "cap", "reuse"],
)
def test_caps_are_kept_where_the_ledger_is(options: dict[str, float], there: bool) -> None:
    spec = plan_sweep(f"{__file__}:goes_on", read_space(["lr=1"]), backend="modal", **options)  # type: ignore[arg-type]
    assert can_be_on_modal(spec) is there
