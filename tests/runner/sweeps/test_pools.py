"""Points of a sweep on Modal that share set-ups: how many containers the server has started."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import sweep
from ml_experiments.backends.modal.plan import IDLE_S
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.search_space.space import read_space
from ml_experiments.runs.folder import RunFolder
from modal_emulator import Emulator
from tests.support.waiting import wait_until

WARM = """
import os, time
from ml_experiments import Experiment, ExperimentConfig

class Warm(Experiment):
    class Config(ExperimentConfig):
        model: str
        seed: int = 0

    setup_fields = ("model",)

    def setup(self):
        time.sleep(0.2)
        self.set_up_in = f"{os.getpid()}-{time.monotonic()}"

    def run(self):
        return {"model": self.config.model, "in": self.set_up_in}
"""


def test_each_model_is_set_up_in_a_container_of_its_own_and_they_end_at_once(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    models, seeds, workers = "abc", 2, 2
    (tmp_path / "warm.py").write_text(WARM)
    began_at = time.time()
    points = list(
        sweep(
            f"{tmp_path}/warm.py:Warm",
            {"seed": range(seeds), "model": list(models)},
            backend="modal",
            backend_options={"cpu": 1},
            parallel=workers,
        )
    )
    ended_at = time.time()
    assert [point.result.status for point in points] == ["success"] * len(models) * seeds

    most = max(len(models), workers)
    assert len({point.result.results["in"] for point in points}) <= most
    assert sum(point.setup_saved_s == 0 for point in points) <= most
    warm = [point for point in points if point.setup_saved_s]
    assert all(point.setup_saved_s >= 0.2 for point in warm)
    assert len(warm) >= len(points) - most

    def ours() -> list[tuple[float, float]]:
        return [
            (each.started_at, each.ended_at)
            for each in modal_emulator.containers()
            if each.created_at >= began_at
        ]

    wait_until(lambda: all(end for _, end in ours()), "the end of the containers")
    assert len(ours()) <= most
    # no second of the wait for another run was paid
    assert max(end for _, end in ours()) < ended_at + 10 < ended_at + IDLE_S
    for start, _ in ours():
        assert sum(first <= start < last for first, last in ours()) <= workers


def test_points_wait_on_modal_for_those_that_run(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "nap.py").write_text(
        "import os, time\ndef nap(n: int):\n    time.sleep(0.4)\n    return time.time()\n"
    )
    began_at = time.time()
    points = list(sweep(f"{tmp_path}/nap.py:nap", {"n": range(3)}, backend="modal", parallel=1))
    runs = sorted(points, key=lambda point: point.result.results)
    handed_over = [
        datetime.datetime.fromisoformat(
            RunFolder(point.result.run_dir).read_manifest().began_at
        ).timestamp()
        for point in runs
    ]
    # before the one before has ended, in whose container they run
    assert all(at < run.result.results for at, run in zip(handed_over[1:], runs, strict=False))
    assert handed_over[2] > handed_over[0] + 0.4  # but no more than one for each container
    assert len([c for c in modal_emulator.containers() if c.created_at >= began_at]) == 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 6),
        ({"fail_fast": True}, 3),
        ({"max_cost": 5.0}, 3),
        ({"pruner": "median", "metric": "loss", "minimize": "loss"}, 3),
        ({"sampler": "random", "trials": 9}, 3),
        ({"backend": "local"}, 3),
    ],
)
def test_points_that_others_decide_about_are_not_handed_over_early(
    tmp_path: Path, options: dict[str, Any], count: int
) -> None:
    (tmp_path / "nap.py").write_text("def nap(n: int):\n    return n\n")
    given = {"backend": "modal", "parallel": 3, **options}
    spec = plan_sweep(f"{tmp_path}/nap.py:nap", read_space(["n=range:9"]), **given)
    assert spec.handed_over == count
