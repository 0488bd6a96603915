"""Caps of sweeps: over retries, larger GPUs and resumptions, when the client is gone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runs.folder import RunFolder
from modal_emulator import Emulator
from tests.support.modal_runs import WAIT_S, handed_out_usd, most_usd_per_s_on
from tests.support.waiting import wait_until

POINTS = """
import os, signal, time

def train(kind: str):
    gpu = os.environ["MODAL_EMULATOR_GPU"]
    print("begun on", gpu, flush=True)
    if kind == "grows" and gpu == "T4":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if kind == "lost":
        os.kill(os.getpid(), signal.SIGKILL)
    while kind == "endless":
        try:
            time.sleep(1)
        except BaseException:
            pass
"""
CLIENT = """
import os, signal, sys
from pathlib import Path
from ml_experiments import Observer, sweep
from ml_experiments.backends.modal import app_pool, plan
from ml_experiments.runner import retry
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.sweep import resume_sweep
from ml_experiments.settings import runs_dir

plan.MIN_RUN_S, plan.MIN_STARTUP_S = 1, 15
plan.IDLE_S = app_pool.IDLE_S = 2
retry._FIRST_WAIT_S = 0.05
MARK = sys.argv[1].encode()

class Killer(Observer):
    def log(self, spec, data):
        if MARK in data:
            os.kill(os.getpid(), signal.SIGKILL)

if len(sys.argv) > 2:
    points = sweep(
        "points.py:train", {"kind": ["grows", "endless", "lost"]}, backend="modal",
        gpu="t4", escalate="l4", retries=2, timeout_s=8, parallel=2, max_cost=float(sys.argv[2]),
        observer=Killer(),
    )
else:
    points = resume_sweep(find_sweep(runs_dir(), "last"), observer=Killer())
list(points)
"""


def test_a_cap_holds_over_attempts_and_resumptions_when_clients_are_killed(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    max_cost = 400 * most_usd_per_s_on("t4")  # a busy machine takes its time
    (tmp_path / "points.py").write_text(POINTS)
    (tmp_path / "client.py").write_text(textwrap.dedent(CLIENT))
    began_at = time.time()

    def client(*arguments: str) -> int:
        command = [sys.executable, "client.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, timeout=WAIT_S, check=False).returncode

    assert client("begun on L4", str(max_cost)) == -9
    assert client("begun on T4") == -9
    assert client("nothing is printed so") == 0
    containers = [each for each in modal_emulator.containers() if each.created_at >= began_at]
    assert {each.gpu for each in containers} == {"T4", "L4"}

    def all_ended() -> bool:
        ours = {each.task_id for each in containers}
        return all(each.ended_at for each in modal_emulator.containers() if each.task_id in ours)

    wait_until(all_ended, "the end of the containers")
    ours = {each.task_id for each in containers}
    spent_usd = handed_out_usd(c for c in modal_emulator.containers() if c.task_id in ours)
    sweep_id = find_sweep(runs_dir, "last").path.name
    counted_usd = open_ledger().spent_usd(f"sweep:{sweep_id}")
    assert spent_usd <= counted_usd <= max_cost
    attempts = [
        len(RunFolder(spec.parent).outcome().attempts) for spec in runs_dir.glob("*/spec.json")
    ]
    assert max(attempts) >= 2
