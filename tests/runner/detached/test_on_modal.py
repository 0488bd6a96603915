"""Sweeps whose controller is in a container on Modal, as commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ml_experiments.runner.detached.on_modal import (
    _request,
    bring_sweep_here,
    call_of,
    can_be_on_modal,
    start_sweep_on_modal,
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


def start(emulator: Emulator, project: Path, runs_dir: Path, *axes: str) -> SweepFolder:
    arguments = ("sweep", "mine.train", *axes, "--gpu", "t4", "--detach", "--json")
    done = run_command(emulator, project, *arguments, "--parallel", "2", "--minimize", "loss")
    assert done.returncode == 0, done.stderr
    return find_sweep(runs_dir, json.loads(done.stdout)["sweep_id"])


def goes_on(folder: SweepFolder) -> bool:
    call = call_of(folder)
    assert call is not None
    return call.goes_on()


def test_a_sweep_goes_on_on_modal_and_is_found_here_and_elsewhere(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start(modal_emulator, project, runs_dir, "lr=0.3,0.1,0.2")
    # its client has ended
    wait_until(lambda: not goes_on(folder), "the end of the sweep")
    shown = run_command(modal_emulator, project, "sweep", "show", "last", "--json")
    points = json.loads(shown.stdout)["points"]
    assert [point["overrides"] for point in points] == [["lr=0.1"], ["lr=0.2"], ["lr=0.3"]]
    assert [point["status"] for point in points] == ["success"] * 3
    assert [point["results"]["on"] for point in points] == ["T4"] * 3
    assert all(point["cost_usd"] > 0 for point in points)
    again = run_command(modal_emulator, project, "sweep", "resume", "last", "--json")
    assert json.loads(again.stdout)["points"] == points

    elsewhere = runs_dir.with_name("elsewhere")
    elsewhere.mkdir()
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", os.fspath(elsewhere))
    synced = run_command(modal_emulator, project, "runs", "sync")
    assert synced.returncode == 0, synced.stderr
    shown = run_command(modal_emulator, project, "sweep", "show", folder.path.name, "--json")
    assert json.loads(shown.stdout)["points"] == points


def test_a_controller_whose_container_is_lost_goes_on_and_is_stopped_from_here(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    space = read_space(["lr=0.1,2.0"])
    spec = plan_sweep("mine.train", space, backend="modal", parallel=2, gpu="t4")
    folder = start_sweep_on_modal(spec, runs_dir)

    def statuses() -> dict[str, str]:
        bring_sweep_here(spec.sweep_id, runs_dir)
        return {p.overrides[0]: str(p.result.status) for p in recorded_points(folder)}

    wait_until(lambda: statuses() == {"lr=0.1": "success", "lr=2.0": "running"}, "a result")
    [container] = [
        each
        for each in modal_emulator.containers()
        if each.function_name == "control_sweep" and each.state == "running"
    ]
    modal_emulator.kill(container.task_id)
    stop_on_modal(folder)
    wait_until(lambda: not goes_on(folder), "the end of the sweep")
    assert statuses() == {"lr=0.1": "success", "lr=2.0": "cancelled"}
    assert folder.read_stop() == "it was stopped by `ml-experiments sweep stop`"
    # no point ran twice
    assert len(list(runs_dir.glob("*/spec.json"))) == 2


def test_a_controller_gets_the_secrets_in_the_sweep_and_no_others() -> None:
    spec = plan_sweep(f"{__file__}:start", read_space(["lr=1", "note=hunter2-hunter2"]))
    assert _request(spec, ("hunter2-hunter2", "another", ""))["secrets"] == ["hunter2-hunter2"]


@pytest.mark.parametrize(
    ("options", "there"),
    [({}, True), ({"max_cost": 1.0}, False)],
    ids=["no cap", "cap"],
)
def test_caps_are_kept_where_the_ledger_is(options: dict[str, float], there: bool) -> None:
    spec = plan_sweep(f"{__file__}:start", read_space(["lr=1"]), backend="modal", **options)  # type: ignore[arg-type]
    assert can_be_on_modal(spec) is there
