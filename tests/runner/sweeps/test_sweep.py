"""Sweeps from Python: grids and samplers, interrupted, resumed, with failures."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ConfigError, Error, SweepPoint, find_runs, load_run, sweep
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.sweeps.folder import SweepFolder, find_sweep, reserved_name
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from ml_experiments.runner.sweeps.search_space.space import read_space
from ml_experiments.runner.sweeps.study import importances
from ml_experiments.runner.sweeps.sweep import extended, resume_sweep
from ml_experiments.runs.folder import RunFolder

TRAIN, FAILS, WARM = "train.py:train", "train.py:fails", "train.py:Warm"


def resume(folder: SweepFolder, **options: Any) -> list[SweepPoint]:
    return list(resume_sweep(folder, observer=Observer(), **options))


def calls(project: Path) -> list[str]:
    return (project / "calls.txt").read_text().splitlines()


def some(points: Iterator[SweepPoint], count: int) -> list[SweepPoint]:
    """Take some points of a sweep, and leave it."""
    taken = list(itertools.islice(points, count))
    points.close()  # type: ignore[attr-defined]
    return taken


def test_a_grid_runs_every_point_once_in_run_folders_with_its_tag(
    project: Path, runs_dir: Path
) -> None:
    points = list(sweep(TRAIN, {"lr": [0.1, 0.2], "steps": range(1, 3)}, minimize="loss"))
    assert [point.values for point in points] == [
        {"lr": 0.1, "steps": 1},
        {"lr": 0.1, "steps": 2},
        {"lr": 0.2, "steps": 1},
        {"lr": 0.2, "steps": 2},
    ]
    assert [point.score for point in points] == [0.1, 0.2, 0.2, 0.4]
    folder = find_sweep(runs_dir, "last")
    found = find_runs(sweep=folder.path.name)
    assert {run.run_id for run in found} == {point.result.run_id for point in points}
    assert resume(folder) == []
    assert len(calls(project)) == 4
    assert [p.score for p in recorded_points(folder)] == [0.1, 0.2, 0.2, 0.4]


def test_points_get_the_same_seed_and_the_options_of_runs(project: Path) -> None:
    points = list(sweep(TRAIN, ["lr=0.1,0.2"], seed=7, tags={"team": "vision"}, name="first"))
    specs = [folder_of(point).read_spec() for point in points]
    assert {spec.seed for spec in specs} == {7}
    assert [spec.name for spec in specs] == ["first-0", "first-1"]
    assert specs[0].tags["team"] == "vision"
    assert specs[0].tags["point"] == "lr=0.1"


def folder_of(point: SweepPoint) -> RunFolder:
    assert point.result.run_dir is not None
    return RunFolder(point.result.run_dir)


@pytest.mark.slow
def test_what_is_not_valid_is_found_before_the_first_point(project: Path, runs_dir: Path) -> None:
    values = [*map(str, range(1, 1000)), "x"]
    with pytest.raises(ConfigError, match=r"steps: given 'x'.*\(at steps=x\)"):
        list(sweep(TRAIN, {"steps": values}))
    with pytest.raises(ConfigError, match=r"lrr: unknown field.*did you mean 'lr'"):
        list(sweep(TRAIN, {"lrr": [1]}))
    with pytest.raises(ConfigError, match="give the config a field `seed`"):
        list(sweep(TRAIN, {"seed": [1, 2]}))
    with pytest.raises(ConfigError, match=r"steps: given 1\.5.*\(at steps=1\.5\)"):
        list(sweep(TRAIN, {"steps": "uniform(1, 1.5)"}, sampler="random", trials=3))
    assert calls(project) == []
    assert list(runs_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampler": "tp", "trials": 3}, "did you mean 'tpe'"),
        ({"sampler": "tpe", "trials": 3}, "say which: --maximize results.accuracy"),
        ({"sampler": "random"}, "say how many: --trials 50"),
        ({"sampler": "grid", "trials": 3}, "--trials goes with a sampler"),
        ({"batch": 3}, "--batch goes with a sampler"),
        ({"maximize": "a", "minimize": "b"}, "either --maximize or --minimize"),
        ({"minimize": "results."}, "--minimize 'results.' names no result"),
        ({"parallel": 0}, "parallel"),
        ({"paralel": 2}, "did you mean 'parallel'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sweep(TRAIN.replace("train.py", f"{__file__}"), {"lr": [1]}, **options)


def test_a_requirements_file_is_recorded(project: Path, runs_dir: Path) -> None:
    file = {"requirements": Path("needs.txt")}
    spec = plan_sweep(TRAIN, read_space(["lr=1"]), backend="modal", backend_options=file)
    folder = SweepFolder.create(runs_dir, spec, Redactor(()))
    assert folder.read_spec().backend_options == {"requirements": "needs.txt"}


def test_a_grid_over_an_endless_axis_names_the_way_out(project: Path) -> None:
    with pytest.raises(ConfigError, match="--sampler random --trials 50"):
        sweep(TRAIN, {"lr": "log(1e-5, 1)"})


def test_one_failure_ends_no_sweep_and_resuming_runs_what_failed(
    project: Path, runs_dir: Path
) -> None:
    points = list(sweep(FAILS, {"lr": [0.9, 0.1, 0.8]}))
    assert [point.result.status for point in points] == ["error", "success", "error"]
    folder = find_sweep(runs_dir, "last")
    (project / "mended").touch()
    again = resume(folder, failed_only=True)
    assert [(p.number, str(p.result.status)) for p in again] == [(0, "success"), (2, "success")]
    # in their own folders, as second attempts
    assert [p.result.run_id for p in again] == [points[0].result.run_id, points[2].result.run_id]
    assert [len(p.result.attempts) for p in again] == [2, 2]


@pytest.mark.slow
def test_fail_fast_starts_no_more_and_failed_leaves_the_rest(project: Path, runs_dir: Path) -> None:
    points = list(sweep(FAILS, {"lr": [0.1, 0.9, 0.2, 0.3]}, fail_fast=True))
    assert [point.number for point in points] == [0, 1]
    folder = find_sweep(runs_dir, "last")
    (project / "mended").touch()
    assert [point.number for point in resume(folder, failed_only=True)] == [1]
    assert [point.number for point in resume(folder)] == [2, 3]


def test_leaving_a_sweep_cancels_what_runs_and_resuming_ends_it(
    project: Path, runs_dir: Path
) -> None:
    space = {"lr": [0.1, 0.2, 0.3], "wait_at": 0.2}
    taken = some(sweep(TRAIN, space, parallel=2), 1)
    assert taken[0].number == 0
    folder = find_sweep(runs_dir, "last")
    (project / "go").touch()
    rest = resume(folder)
    assert {point.number for point in (*taken, *rest)} == {0, 1, 2}
    assert {str(point.result.status) for point in rest} == {"success"}


@pytest.mark.parametrize("metric", ["accuracy", "nan", "nothing", "loss.x"])
def test_a_score_that_is_none_is_a_problem_of_its_point(project: Path, metric: str) -> None:
    (point,) = sweep(TRAIN, {"lr": [0.1]}, maximize=metric)
    assert point.score is None
    assert {
        "accuracy": "the results have no results.accuracy; there are loss, nan, nothing",
        "nan": "results.nan is nan, which can't be compared",
        "nothing": "results.nothing is None, not a number",
        "loss.x": "the results have no results.loss.x",
    }[metric] in (point.problem or "")


@pytest.mark.parametrize(
    ("metric", "sampler", "count"),
    [("accuracy", "tpe", 3), ("nothing", "tpe", 3), ("nan", "tpe", 6), ("accuracy", "random", 6)],
)
def test_a_search_without_its_metric_stops(
    metric: str, sampler: str, count: int, project: Path, runs_dir: Path
) -> None:
    points = list(
        sweep(TRAIN, {"lr": "uniform:0:1"}, maximize=metric, sampler=sampler, trials=6, seed=1)
    )
    assert len(points) == count
    why = find_sweep(runs_dir, "last").read_stop()
    if count == 6:
        assert why is None
    else:
        assert why == f"none of the first 3 points has a score: {points[2].problem}"
        assert len(resume(find_sweep(runs_dir, "last"))) == 3  # as the experiment may be mended


def test_set_ups_are_as_few_as_models(project: Path) -> None:
    space = {"seed": range(4), "model": ["a", "b", "c"]}
    points = list(sweep(WARM, space, parallel=2))
    assert len(points) == 12
    assert all(point.values == point.result.results for point in points)
    assert Counter(calls(project)) == {"setup a": 1, "setup b": 1, "setup c": 1}


def test_more_workers_than_models_set_up_once_each(project: Path) -> None:
    assert len(list(sweep(WARM, {"seed": range(8), "model": ["a"]}, parallel=3))) == 8
    assert 1 <= len(calls(project)) <= 3


SEARCH = {"lr": "log(1e-4, 1)", "steps": {"int": [1, 3]}}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cmaes", "qmc"])
def test_a_resumed_sweep_suggests_what_an_uninterrupted_one_would(
    project: Path, runs_dir: Path, sampler: str
) -> None:
    options: dict[str, Any] = {"sampler": sampler, "trials": 14, "seed": 3, "minimize": "loss"}
    whole = [point.overrides for point in sweep(TRAIN, SEARCH, **options)]
    first = some(sweep(TRAIN, SEARCH, **options), 5)
    folder = find_sweep(runs_dir, "last")
    rest = resume(folder)
    found = {point.number: point.overrides for point in (*first, *rest)}
    assert [found[number] for number in sorted(found)] == whole


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(project: Path) -> None:
    options: dict[str, Any] = {"trials": 15, "batch": 4, "seed": 3, "minimize": "loss"}
    one = {p.number: p.overrides for p in sweep(TRAIN, SEARCH, **options)}
    three = {p.number: p.overrides for p in sweep(TRAIN, SEARCH, parallel=3, **options)}
    assert one == three


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "nul", "garbage", "gone"])
def test_a_damaged_journal_is_made_again_from_the_run_folders(
    project: Path, runs_dir: Path, damage: str
) -> None:
    options: dict[str, Any] = {"trials": 8, "seed": 3, "minimize": "loss", "sampler": "random"}
    whole = [point.overrides for point in sweep(TRAIN, SEARCH, **options)]
    first = some(sweep(TRAIN, SEARCH, **options), 4)
    folder = find_sweep(runs_dir, "last")
    content = folder.journal.read_bytes()
    if damage == "gone":
        folder.journal.unlink()
    else:
        end = {"cut": b"", "nul": b"\0" * 100, "garbage": b"no json\n"}[damage]
        folder.journal.write_bytes(content[: -7 if damage == "cut" else None] + end)
    folder.journal.with_name("study.log.lock").touch()  # of a process that was killed
    found = {point.number: point.overrides for point in (*first, *resume(folder))}
    assert [found[number] for number in sorted(found)] == whole


def test_a_combination_that_the_config_refuses_fails_alone(project: Path) -> None:
    (project / "pair.py").write_text(
        "import pydantic\nfrom ml_experiments import Experiment, ExperimentConfig\n"
        "class Pair(Experiment):\n"
        "    class Config(ExperimentConfig):\n"
        "        a: int = 0\n        b: int = 0\n"
        "        @pydantic.model_validator(mode='after')\n"
        "        def check(self):\n"
        "            if self.a and self.b: raise ValueError('a and b exclude each other')\n"
        "            return self\n"
        "    def run(self): return {'sum': self.config.a + self.config.b}\n"
    )
    axes = ["a=0,1", "b=0,1"]
    with pytest.raises(ConfigError, match=r"exclude each other.*at a=1 b=1"):
        list(sweep("pair.py:Pair", axes))
    points = list(sweep("pair.py:Pair", axes, sampler="random", trials=12, seed=1, maximize="sum"))
    assert {str(p.result.status) for p in points} == {"success", "error"}


def test_a_sweep_runs_in_one_process_at_a_time(project: Path, runs_dir: Path) -> None:
    list(sweep(TRAIN, {"lr": [0.1]}, name="mine"))
    folder = find_sweep(runs_dir, "mine")
    assert not folder.is_running
    with folder.locked():
        assert folder.is_running
        with pytest.raises(Error, match="is being run by another process"):
            resume(folder)
    with reserved_name(runs_dir, "mine"), pytest.raises(Error, match="give another --name"):
        list(sweep(TRAIN, {"lr": [0.1]}, name="mine"))
    list(sweep(TRAIN, {"lr": [0.1]}, name="mine"))
    with pytest.raises(Error, match="'mine' matches 2 sweeps"):
        find_sweep(runs_dir, "mine")


def test_a_sweep_whose_record_lacks_a_secret_is_not_resumed(
    project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2-hunter2")
    (project / "keyed.py").write_text("def train(key: str, n: int = 1):\n    return n\n")
    list(sweep("keyed.py:train", {"key": "hunter2-hunter2", "n": [1, 2]}))
    folder = find_sweep(runs_dir, "last")
    assert "hunter2" not in (folder.path / "sweep.json").read_text()
    with pytest.raises(Error, match="held a secret, which was not recorded"):
        resume(folder)


@pytest.mark.slow
def test_the_results_do_not_depend_on_order_or_workers(project: Path) -> None:
    (project / "draws.py").write_text(
        "import random\ndef draw(n: int):\n    return {'x': n * random.random()}\n"
    )
    numbers = [1, 2, 3, 4, 5, 6]
    found = []
    for workers in (1, 3):
        random.Random(workers).shuffle(numbers)
        points = sweep("draws.py:draw", {"n": numbers}, parallel=workers, seed=5)
        found.append({p.values["n"]: p.result.results["x"] for p in points})
    assert found[0] == found[1]


def test_what_is_recorded_comes_back(project: Path, runs_dir: Path) -> None:
    list(sweep(TRAIN, {"lr": [0.1], "steps": "int(1, 1)"}, timeout_s=60, parallel=2))
    spec = find_sweep(runs_dir, "last").read_spec()
    assert spec.options == {"timeout_s": 60.0}
    assert spec.parallel == 2
    assert dataclasses.replace(spec, name="x").space == spec.space


def test_a_grid_is_extended_by_values_and_keeps_its_points(project: Path, runs_dir: Path) -> None:
    list(sweep(TRAIN, ["lr=0.1,0.2", "steps=range:1:3"]))
    folder = find_sweep(runs_dir, "last")
    added = resume(folder, change=lambda spec: extended(spec, ["lr=0.2,0.3"], None))
    assert [point.overrides for point in added] == [
        ("lr=0.3", "steps=1"),
        ("lr=0.3", "steps=2"),
    ]
    assert len(calls(project)) == 6
    assert [point.number for point in recorded_points(folder)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_sampler_goes_on_with_more_trials_and_wider_intervals(
    project: Path, runs_dir: Path
) -> None:
    options: dict[str, Any] = {"sampler": "random", "seed": 3, "minimize": "loss"}
    whole = [p.overrides for p in sweep(TRAIN, SEARCH, trials=6, **options)]
    first = [p.overrides for p in sweep(TRAIN, SEARCH, trials=4, **options)]
    folder = find_sweep(runs_dir, "last")
    more = resume(folder, change=lambda spec: extended(spec, [], 6))
    assert [*first, *(point.overrides for point in more)] == whole
    wider = resume(folder, change=lambda spec: extended(spec, ["steps=int:1:9"], 7))
    assert len(wider) == 1


def test_a_wider_interval_is_checked_though_no_point_is_to_run(
    project: Path, runs_dir: Path
) -> None:
    (project / "bounded.py").write_text(
        "import pydantic\nfrom ml_experiments import Experiment, ExperimentConfig\n"
        "class Small(Experiment):\n    class Config(ExperimentConfig):\n"
        "        n: int = pydantic.Field(le=5)\n    def run(self): return self.config.n\n"
    )
    list(sweep("bounded.py:Small", {"n": {"int": [1, 3]}}, trials=1, sampler="random"))
    folder = find_sweep(runs_dir, "last")
    before = folder.read_spec()
    with pytest.raises(ConfigError, match="less than or equal to 5"):
        resume(folder, change=lambda spec: extended(spec, ["n=int:1:9"], None))
    assert folder.read_spec() == before


@pytest.mark.parametrize(
    ("axes", "trials", "says"),
    [
        ([], 4, "the sweep has 4; write a larger number"),
        (["lrr=1"], None, r"no axis lrr \(did you mean 'lr'\?\)"),
        (["lr=log:1e-3:1"], None, "does not contain what it was"),
        (["steps=1,2"], None, "can't change while a sampler chooses"),
    ],
)
def test_what_can_not_be_extended(
    project: Path, runs_dir: Path, axes: list[str], trials: int | None, says: str
) -> None:
    list(sweep(TRAIN, SEARCH, trials=4, sampler="random", seed=3))
    folder = find_sweep(runs_dir, "last")
    with pytest.raises(ConfigError, match=says):
        resume(folder, change=lambda spec: extended(spec, axes, trials))
    assert folder.read_spec().trials == 4


@pytest.mark.parametrize("pruner", ["median", "percentile", "halving"])
def test_a_pruner_ends_a_poor_point_of_a_grid(project: Path, runs_dir: Path, pruner: str) -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 2.0]
    points = sweep(
        *("train.py:logs", {"lr": values}),
        pruner=pruner,
        metric="loss",
        minimize="loss",
        timeout_s=60,
    )
    poor = list(points)[-1]
    assert poor.values == {"lr": 2.0}
    assert poor.is_pruned
    assert poor.score is None
    recorded = load_run(poor.result.run_id)
    assert str(recorded.status) == "cancelled"
    assert recorded.error is not None
    assert recorded.error.message.startswith("loss is 2 at step ")
    steps = [entry["step"] for entry in recorded.metrics]
    assert steps  # what it had logged until it was ended is kept
    assert steps == [0, 1, 2][: len(steps)]
    folder = find_sweep(runs_dir, "last")
    count = len(calls(project))
    again = resume(folder)  # what was ended early does not run again; halving may end more
    assert all(not point.is_pruned for point in recorded_points(folder)[:1])
    assert len(calls(project)) == count + len(again)
    assert 5 not in {point.number for point in again}


def test_a_pruner_learns_after_a_resumption_what_had_been_logged(
    project: Path, runs_dir: Path
) -> None:
    options: dict[str, Any] = {"pruner": "median", "metric": "loss", "minimize": "loss"}
    values = {"lr": [0.1, 0.2, 0.3, 0.4, 0.5, 2.0]}
    assert len(some(sweep("train.py:logs", values, timeout_s=60, **options), 5)) == 5
    # the last may have begun, and was cancelled; there is nothing to compare with but what is past
    (poor,) = resume(find_sweep(runs_dir, "last"))
    assert poor.is_pruned


def test_a_pruner_ends_points_that_a_sampler_has_suggested(project: Path) -> None:
    points = list(
        sweep(
            *("train.py:logs", {"lr": [0.1, 0.2, 0.3, 2.0]}),
            sampler="random",
            trials=4,
            seed=23,  # suggests 2.0 as the last
            minimize="loss",
            pruner="halving",
            metric="loss",
            timeout_s=60,
        )
    )
    assert points[-1].values == {"lr": 2.0}
    assert points[-1].is_pruned


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pruner": "medain"}, "did you mean 'median'"),
        ({"pruner": "median"}, "--metric loss --minimize results.loss"),
        ({"pruner": "median", "metric": "loss"}, "which way is better"),
        ({"metric": "loss"}, "--metric goes with a pruner"),
        ({"min_steps": 3}, "--min-steps goes with a pruner"),
    ],
)
def test_options_of_pruners_that_do_not_go_together(
    project: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        sweep("train.py:logs", {"lr": [1]}, **options)


def test_min_steps_keep_a_point_from_being_ended_before(project: Path) -> None:
    points = list(
        sweep(
            *("train.py:logs", {"lr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]}),
            pruner="median",
            metric="loss",
            minimize="loss",
            min_steps=5,
        )
    )
    assert not any(point.is_pruned for point in points)


def importances_of(space: list[str], count: int, metric: str | None = "loss") -> dict[str, float]:
    """Return the importances for points at which lr matters and nothing else does."""
    spec = plan_sweep(f"{__file__}:train", read_space(space), minimize=metric)
    points = list(itertools.islice(spec.space.points(), count))

    def score(point: tuple[str, ...]) -> float:
        values = dict(override.split("=") for override in point)
        return abs(math.log10(float(values.get("lr", 1))) + 3)

    return importances(spec, [(point, score(point)) for point in points])


def test_importances_tell_the_axis_that_matters_and_numbers_in_a_list_are_on_a_scale() -> None:
    space = ["lr=1e-5,1e-4,1e-3,1e-2,1e-1", "steps=range:4", "optimizer=adam,sgd", "layers=2"]
    found = importances_of(space, 40)
    assert next(iter(found)) == "lr"
    assert set(found) == {"lr", "steps", "optimizer"}  # layers does not vary
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("space", "count", "says"),
    [
        (["lr=1,2,3", "steps=range:3"], 9, "9 of the points have a score, and importances take"),
        (["lr=range:1:20"], 19, "only lr varies"),
        (["lr=1"], 1, "nothing varies"),
        (["seed=range:4", "steps=range:4"], 16, r"all 16 points have the same results\.loss"),
    ],
)
def test_where_importances_can_not_be_told_it_says_why(
    space: list[str], count: int, says: str
) -> None:
    with pytest.raises(Error, match=says):
        importances_of(space, count)


def test_without_a_result_to_compare_there_are_no_importances() -> None:
    with pytest.raises(Error, match="the sweep compares no result"):
        importances_of(["lr=range:1:9", "steps=range:4"], 20, metric=None)
