"""Optuna's side of a sweep: its samplers and pruners, without runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import sweep
from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.search_space.space import read_space
from ml_experiments.runner.sweeps.study import PastTrial, Study
from modal_emulator import Emulator

LOGS = """
import time
from ml_experiments import current_run

def train(lr: float):
    current_run().log({"loss": lr}, step=1)
    while lr > 1:  # it has to be ended
        time.sleep(0.01)
"""


def study_of(past: Sequence[PastTrial] = (), journal: Path | None = None, **given: Any) -> Study:
    space = read_space(["lr=log:1e-4:1", "steps=int:1:3"])
    spec = SweepSpec("id", "a:b", "", space.to_dict(), direction="minimize", **given)
    return Study(spec, journal, lambda: past)


@pytest.mark.slow
def test_a_gaussian_process_learns_and_suggests_the_same_again() -> None:
    pytest.importorskip("torch")
    found = []
    for _ in range(2):
        study, suggested = study_of(sampler="gp", trials=11, seed=3), []
        for _ in range(11):
            trial = study.ask()
            lr = float(trial.overrides[0].partition("=")[2])
            suggested.append(lr)
            study.tell(trial.number, abs(lr - 0.01))
        found.append(suggested)
    assert found[0] == found[1]
    # after ten at random, it comes closer than these
    assert min(abs(lr - 0.01) for lr in found[0][10:]) < min(abs(lr - 0.01) for lr in found[0][:10])


def test_a_quasi_random_sequence_goes_on_without_scores_and_without_its_journal() -> None:
    pytest.importorskip("scipy")

    def suggested(study: Study, score: float | None) -> list[tuple[str, ...]]:
        trials = [study.ask() for _ in range(4)]
        for trial in trials:
            study.tell(trial.number, score)
        return [trial.overrides for trial in trials]

    scored = study_of(sampler="qmc", trials=8, seed=3)
    first, second = suggested(scored, 1.0), suggested(scored, 1.0)
    assert len({*first, *second}) == 8
    assert suggested(study_of(sampler="qmc", trials=8, seed=3), None) == first
    past = [PastTrial(number, point, None, True) for number, point in enumerate(first)]
    assert suggested(study_of(past, sampler="qmc", trials=8, seed=3), None) == second


def test_a_suggestion_that_a_kill_has_cut_short_is_made_again(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    journal, given = tmp_path / "study.log", {"sampler": "cmaes", "trials": 7, "seed": 3}

    def suggested(study: Study, count: int) -> list[tuple[str, ...]]:
        found = []
        for _ in range(count):
            trial = study.ask()
            study.tell(trial.number, trial.number % 3)
            found.append(trial.overrides)
        return found

    whole = suggested(study_of(**given), 7)
    assert suggested(study_of(journal=journal, **given), 5) == whole[:5]
    before = journal.read_bytes()
    suggested(study_of(journal=journal, **given), 1)
    added = journal.read_bytes().removeprefix(before).splitlines(keepends=True)
    parameter = next(n for n, line in enumerate(added) if b'"param_name"' in line)
    journal.write_bytes(b"".join([before, *added[: parameter + 1]]))  # and not the other one
    assert suggested(study_of(journal=journal, **given), 2) == whole[5:]


def test_a_journal_that_lacks_points_which_have_run_is_made_again(tmp_path: Path) -> None:
    journal, given = tmp_path / "study.log", {"sampler": "random", "trials": 6, "seed": 3}
    study = study_of(journal=journal, **given)
    trials = [study.ask() for _ in range(2)]
    content = journal.read_bytes()  # as a backup, or what a power cut has left
    trials += [study.ask() for _ in range(2)]
    journal.write_bytes(content)
    past = [PastTrial(trial.number, trial.overrides, 1.0, True) for trial in trials]
    again = study_of(past, journal, **given)
    assert [trial.overrides for trial in again.trials()] == [t.overrides for t in trials]
    assert again.ask().number == 4


def losses(point: int, poor: bool) -> list[float]:
    return [(10.0 if poor else 1.0) + 0.01 * point + 0.001 * (step % 3) for step in range(12)]


@pytest.mark.parametrize("pruner", ["median", "percentile", "halving", "hyperband", "wilcoxon"])
def test_a_pruner_ends_poor_points_and_no_good_one(pruner: str) -> None:
    study = study_of(pruner=pruner, pruner_metric="loss", min_steps=2)
    ended: dict[bool, list[int]] = {False: [], True: []}
    for point in range(16):
        is_poor = point >= 8
        number = study.begin(["lr=0.1", "steps=1"])
        values = losses(point, is_poor)
        for step, value in enumerate(values):
            if study.report(number, step, value):
                ended[is_poor].append(point)
                study.tell(number, None, is_pruned=True)
                break
        else:
            study.tell(number, values[-1])
    assert len(ended[True]) >= 4
    assert 0 not in ended[False]


def test_a_poor_point_on_modal_is_ended_within_seconds(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "logs.py").write_text(LOGS)
    good, poor = sweep(
        f"{tmp_path}/logs.py:train",
        {"lr": [0.1, 2.0]},
        backend="modal",
        parallel=1,
        minimize="loss",
        pruner="halving",
        metric="loss",
        timeout_s=300,
    )
    assert not good.is_pruned
    assert poor.is_pruned
    assert str(poor.result.status) == "cancelled"
    # from what it logged to the end of its container's work
    assert poor.result.timings["total_s"] < 10
    assert [entry["metrics"] for entry in poor.result.metrics] == [{"loss": 2.0}]
