"""Successive halving by money: which points go on, with how much, and from where."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from ml_experiments import ConfigError, SweepPoint, sweep
from ml_experiments.backends.modal import app_pool
from ml_experiments.backends.modal import plan as container_plan
from ml_experiments.backends.modal.billing.prices import container_usd_per_s
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from ml_experiments.runner.sweeps.rounds import MoneyRounds, rounds_for
from ml_experiments.runner.sweeps.sources import NextPoint, PointSource
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunError, RunStatus
from modal_emulator import Emulator
from tests.support.run_folders import write_run


class Listed(PointSource):
    """Points in their order."""

    def __init__(self, count: int) -> None:
        self._waiting = deque(range(count))

    def take(self) -> NextPoint | None:
        if not self._waiting:
            return None
        number = self._waiting.popleft()
        return NextPoint(number, (f"n={number}",))

    def ended(self, point: SweepPoint) -> None:
        pass


class Game:
    """Plays a sweep in which each point costs what it was given."""

    def __init__(self, runs_dir: Path, losses: Sequence[float | None], left_usd: float) -> None:
        self.runs_dir, self.losses, self.left_usd = runs_dir, losses, left_usd
        self.rounds: list[dict[int, float]] = []
        self.whole_after: dict[int, int] = {}  # attempts after which a point ends by itself
        self.decided: list[SweepPoint] = []

    def play(self) -> None:
        points = MoneyRounds(
            Listed(len(self.losses)),
            len(self.losses),
            metric="loss",
            direction="minimize",
            left_usd=lambda: self.left_usd,
            least_usd=0.1,
        )
        attempts = dict.fromkeys(range(len(self.losses)), 0)
        while True:
            taken: dict[int, float] = {}
            while (point := points.take()) is not None:
                assert point.max_usd is not None
                taken[point.number] = round(point.max_usd, 3)
            self.decided += points.decided(None)
            if not taken:
                return
            self.rounds.append(taken)
            for number, usd in taken.items():
                attempts[number] += 1
                self.left_usd -= usd
                ended = self.end(number, whole=self.whole_after.get(number) == attempts[number])
                points.ended(ended)
                self.decided += points.decided(ended)

    def end(self, number: int, *, whole: bool) -> SweepPoint:
        run_id = f"20261125-120000-{number:07}"
        folder = RunFolder(self.runs_dir / run_id)
        if not folder.path.exists():
            write_run(self.runs_dir, run_id, timeout_s=5.0, asked_timeout_s=60.0)
            if (loss := self.losses[number]) is not None:
                entry = {"step": 1, "time": 0, "metrics": {"loss": loss}}
                folder.metrics_file.write_text(json.dumps(entry) + "\n")
        error = None if whole else RunError(ErrorKind.TIMEOUT, "SoftTimeout", "")
        status = RunStatus.SUCCESS if whole else RunStatus.ERROR
        result = dataclasses.replace(folder.read_result(), status=status, error=error)
        return SweepPoint(number, (f"n={number}",), result)


def test_each_round_has_an_equal_part_and_half_of_the_points(runs_dir: Path) -> None:
    game = Game(runs_dir, [0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5, 0.4], 8.0)
    game.play()
    assert game.rounds == [
        dict.fromkeys(range(8), 0.25),
        {1: 0.5, 3: 0.5, 5: 0.5, 7: 0.5},
        {1: 1.0, 3: 1.0},
        {1: 2.0},
    ]
    pruned = [point.number for point in game.decided if point.is_pruned]
    assert pruned == [0, 2, 4, 6, 5, 7, 3]
    [poor] = [point for point in game.decided if point.number == 0]
    assert poor.result.status is RunStatus.CANCELLED
    assert poor.result.error is not None
    assert "loss is 0.8, poor beside the other points" in poor.result.error.message
    # the best is not called poor: its money was used up
    assert game.decided[-1].number == 1
    assert not game.decided[-1].is_pruned


def test_what_comes_to_its_end_needs_no_more_and_is_compared_with(runs_dir: Path) -> None:
    game = Game(runs_dir, [0.1, 0.2, 0.3, None], 3.0)
    game.whole_after = {0: 1}
    game.play()
    # of the better two, one has ended; the last one had nothing to be compared by
    assert [sorted(taken) for taken in game.rounds] == [[0, 1, 2, 3], [1]]
    assert sorted(point.number for point in game.decided if point.is_pruned) == [1, 2, 3]
    assert "it has not logged loss" in str([p.result.error for p in game.decided])


def test_there_are_fewer_rounds_where_a_slice_would_be_too_small() -> None:
    assert rounds_for(8, 8.0, 0.1) == 4
    assert rounds_for(8, 2.0, 0.1) == 2
    assert rounds_for(8, 0.1, 0.1) == 1
    assert rounds_for(1, 8.0, 0.1) == 1
    assert rounds_for(5, 8.0, 0.0) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_steps": 3}, "leave --min-steps out"),
        ({"sampler": "tpe", "trials": 4}, "use a grid, or --sampler random or qmc"),
    ],
)
def test_options_that_do_not_go_with_halving_by_money(
    options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        sweep(
            f"{__file__}:Game",
            {"lr": [1]},
            backend="modal",
            pruner="halving",
            metric="loss",
            minimize="loss",
            max_cost=1.0,
            **options,  # type: ignore[arg-type]
        )


TRAIN = """
import time
from ml_experiments import current_run

def train(lr: float):
    run = current_run()
    file = run.checkpoint_dir / "step.txt"
    first = int(file.read_text()) if file.exists() else 0
    run.log({"loss": lr}, step=first)
    file.write_text(str(first + 1))
    while first == 0:  # until its slice is used up
        time.sleep(0.1)
    return {"loss": lr, "first": first}
"""


def test_the_better_points_go_on_from_their_checkpoints_within_the_cap(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_plan, "MIN_RUN_S", 1)
    monkeypatch.setattr(container_plan, "MIN_STARTUP_S", 10)
    for module in (container_plan, app_pool):
        monkeypatch.setattr(module, "IDLE_S", 2)
    (tmp_path / "train.py").write_text(TRAIN)
    [choice] = parse_gpu("t4").choices
    max_cost = 3 * 4 * (10 + 6 + 2) * container_usd_per_s(choice, 16, 32)
    began_at = time.time()
    points = list(
        sweep(
            f"{tmp_path}/train.py:train",
            {"lr": [0.4, 0.1, 0.3, 0.2]},
            backend="modal",
            gpu="t4",
            timeout_s=60,
            parallel=4,
            minimize="loss",
            pruner="halving",
            metric="loss",
            max_cost=max_cost,
        )
    )
    assert sorted(point.number for point in points) == [0, 1, 2, 3]
    best = {p.values["lr"]: p for p in points if p.result.status is RunStatus.SUCCESS}
    assert sorted(best) == [0.1, 0.2]
    for point in best.values():
        assert point.result.results["first"] > 0
        assert [a.kind for a in point.result.attempts] == [ErrorKind.TIMEOUT, None]
    assert all(point.is_pruned for point in points if point.values["lr"] not in best)
    # the containers of a round have ended before those of the next one start
    lives = [
        (each.started_at, each.ended_at or time.time())
        for each in modal_emulator.containers()
        if each.created_at >= began_at
    ]
    assert all(sum(first <= start < last for first, last in lives) <= 4 for start, _ in lives)
    folder = find_sweep(runs_dir, "last")
    assert [str(p.result.status) for p in recorded_points(folder)] == [
        *("cancelled", "success", "cancelled", "success")
    ]
    assert open_ledger().spent_usd(f"sweep:{folder.path.name}") <= max_cost
