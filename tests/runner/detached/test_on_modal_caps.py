"""Caps of what a container on Modal controls: reserved as a whole, and settled once it is here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_experiments import BudgetError, ModalBackend, prepare_run
from ml_experiments.backends.modal.detached.containers import most_usd_per_s
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.ledger import Ask, Cap, Ledger
from ml_experiments.runner.budget.reserving import (
    ALL_ATTEMPTS,
    Budget,
    open_ledger,
    read_spent,
    release,
    reserve_asked,
)
from ml_experiments.runner.detached.allowance import Allowance, reserve_all
from ml_experiments.runner.detached.controller import LEDGER_FILE
from ml_experiments.runner.detached.remote_sweeps import _count_lost
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec, find_sweep
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import Attempt, RunResult, RunStatus
from modal_emulator import Emulator
from tests.support.modal_experiments import Greet
from tests.support.modal_runs import WAIT_S, most_usd_per_s_on, run_command
from tests.support.run_folders import write_run


@pytest.fixture
def backend(modal_emulator: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


def test_what_all_attempts_elsewhere_cost_is_read_once_their_end_is_here(runs_dir: Path) -> None:
    attempts = [
        Attempt(number, RunStatus.ERROR, "Modal", "", 1.0, at_most_usd=usd)
        for number, usd in ((1, 0.25), (2, 0.5))
    ]
    folder = write_run(runs_dir, "away", status=None, manifest={"controller": "fc-1"})
    assert read_spent(runs_dir, "away", ALL_ATTEMPTS) is None
    result = RunResult("away", RunStatus.ERROR, "x", attempts=tuple(attempts))
    folder.result_file.write_text(json.dumps(result.to_dict()))
    assert read_spent(runs_dir, "away", ALL_ATTEMPTS) == 0.75
    result = dataclasses.replace(result, cost={"controller_usd": 0.125})
    folder.result_file.write_text(json.dumps(result.to_dict()))
    assert read_spent(runs_dir, "away", ALL_ATTEMPTS) == 0.875
    # taken up here again: the attempts before that
    folder.result_file.unlink()
    again = Manifest("away", earlier_attempts=tuple(attempts[:1]))
    folder.write_manifest(again, Redactor(()))
    assert read_spent(runs_dir, "away", ALL_ATTEMPTS) == 0.25


def test_a_sweep_elsewhere_counts_as_reserved_until_its_end_is_here(runs_dir: Path) -> None:
    axes = [{"name": "lr", "values": ["0.1", "0.2"]}]
    spec = SweepSpec("20261126-120000-0000001", "x:y", "", axes, max_cost=3.0)
    folder = SweepFolder.create(runs_dir, spec, Redactor(()))
    ask = Ask(spec.sweep_id, ALL_ATTEMPTS, runs_dir, "a sweep", 2.0, 1.0)
    reserve_asked([ask], spec.budget)
    assert open_ledger().spent_usd(spec.budget.scope) == 2.0
    # its controller is lost: what that has left of its ledger counts, reservations too
    there = Ledger(folder.path / LEDGER_FILE, read_spent)
    point = Ask("point", 1, runs_dir, "a run on t4", 0.5, 0.1)
    no_cap = Cap("", None, "")
    there.reserve([point], spec.budget.scope, no_cap, no_cap)
    _count_lost(folder)
    assert open_ledger().spent_usd(spec.budget.scope) == 0.5
    (folder.path / "spent.json").write_text('{"usd": -1}')
    assert read_spent(runs_dir, spec.sweep_id, ALL_ATTEMPTS) is None


def test_a_reservation_of_a_client_that_was_killed_too_early_is_free_again(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "quick.py").write_text("def train(): return 1\n")
    max_cost = 320 * most_usd_per_s_on("t4")
    killed = f"""
        import os, signal
        from ml_experiments import ModalBackend, run_experiment
        ModalBackend.submit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run_experiment("quick.py:train", backend="modal", gpu="t4", max_cost={max_cost!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(killed)]
    assert subprocess.run(command, cwd=tmp_path, timeout=WAIT_S, check=False).returncode == -9
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    assert open_ledger().spent_usd(f"run:{path.name}") == pytest.approx(max_cost)
    done = run_command(modal_emulator, tmp_path, "runs", "resume", path.name)
    assert done.returncode == 0, done.stderr
    assert open_ledger().spent_usd(f"run:{path.name}") < max_cost


KILLED_WHILE_THE_IMAGE_IS_BUILT = """
import os, signal
from ml_experiments import ModalBackend, prepare_run
from ml_experiments.backends.modal.detached import containers
from ml_experiments.runner.detached.on_modal import start_run_on_modal
from ml_experiments.runner.detached.sweep_on_modal import start_sweep_on_modal
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.search_space.space import read_space
from ml_experiments.settings import runs_dir

containers.package_image = lambda **_: os.kill(os.getpid(), signal.SIGKILL)
options = dict(gpu="t4", timeout_s=3600, retries=1, max_cost=100.0)
if {is_sweep}:
    space = read_space(["lr=1"])
    spec = plan_sweep("quick.py:train", space, backend="modal", **options)
    start_sweep_on_modal(spec, runs_dir())
with ModalBackend() as backend:
    prepared = prepare_run("quick.py:train", dict(lr=1), backend=backend, **options)
    start_run_on_modal(prepared, print)
"""


@pytest.mark.parametrize("is_sweep", [True, False], ids=["sweep", "run"])
def test_a_reservation_for_a_controller_that_was_never_started_is_free_again(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, is_sweep: bool
) -> None:
    (tmp_path / "quick.py").write_text("def train(lr): return 1\n")
    program = KILLED_WHILE_THE_IMAGE_IS_BUILT.format(is_sweep=is_sweep)
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=tmp_path, timeout=WAIT_S, check=False).returncode == -9
    if is_sweep:
        path = find_sweep(runs_dir, "last").path
    else:
        [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    resume = ("sweep" if is_sweep else "runs", "resume", path.name)
    scope = f"{'sweep' if is_sweep else 'run'}:{path.name}"
    reserved_usd = open_ledger().spent_usd(scope)
    assert reserved_usd > 1
    done = run_command(modal_emulator, tmp_path, *resume)
    assert done.returncode == 0, done.stderr
    assert open_ledger().spent_usd(scope) < reserved_usd / 10


def test_without_a_cap_a_controller_is_limited_by_nothing() -> None:
    assert Allowance(None).calls(10) == {"timeout_s": 24 * 3600, "retries": 10}


@pytest.mark.parametrize(
    ("own_s", "retries", "timeout_s"),
    [(500.0, 0, 500), (1300.0, 1, 650), (700_000.0, 10, 63_636), (5e6, 10, 24 * 3600)],
)
def test_all_calls_of_a_controller_fit_in_its_part(
    own_s: float, retries: int, timeout_s: int
) -> None:
    calls = Allowance(None, 1.0, own_s).calls(10)
    assert calls == {"timeout_s": timeout_s, "retries": retries}
    assert (1 + retries) * timeout_s <= own_s


def test_a_days_cap_is_reserved_for_what_is_controlled_on_modal(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path, backend: ModalBackend
) -> None:
    prepared = prepare_run(Greet, {}, backend=backend, gpu="t4", retries=1)
    assert prepared.forecast.all_attempts_usd > 1
    budget = Budget("run:a")
    plan = prepared.plan
    free = reserve_all("a", budget, prepared.forecast, plan, runs_dir)
    assert (free.runs_usd, free.own_s) == (None, None)
    assert free.reservation is not None
    assert free.reservation.usd > prepared.forecast.all_attempts_usd
    release(free.reservation)
    monkeypatch.setenv("ML_EXPERIMENTS_MAX_COST_PER_DAY", "1")
    capped = reserve_all("b", Budget("run:b"), prepared.forecast, plan, runs_dir)
    assert capped.reservation is not None
    assert capped.reservation.usd == 1
    assert capped.runs_usd is not None
    assert capped.own_s is not None
    assert capped.runs_usd + capped.own_s * most_usd_per_s() == pytest.approx(1)
    with pytest.raises(BudgetError, match=r"the day's cap of \$1\.00 is too low"):
        reserve_all("c", Budget("run:c"), prepared.forecast, plan, runs_dir)
    unpriced = dataclasses.replace(prepared.forecast, worst_case_usd=None)
    with pytest.raises(BudgetError, match="no price is known for t4"):
        reserve_all("d", Budget("run:d"), unpriced, plan, runs_dir)
