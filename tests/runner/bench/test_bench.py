"""Benches from Python, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ConfigError, Error, bench, find_runs
from ml_experiments.errors import BudgetError, GpuTypeError, RunNotFoundError
from ml_experiments.runner.bench.bench import plan_bench, report_on, resume_bench, run_bench
from ml_experiments.runner.bench.folder import find_bench
from ml_experiments.runner.budget.ledger import Ask, Cap
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.sweeps.search_space.space import read_space
from modal_emulator import Emulator
from tests.support.launched_experiments import Regression
from tests.support.modal_runs import folder_of

DRAW = "draw.py:Draw"


def test_each_case_warms_up_and_is_measured_in_a_process_that_is_set_up_once(
    project: Path, runs_dir: Path
) -> None:
    report = bench(
        DRAW,
        {"model": "small"},
        vary={"batch_size": [1, 4, 16]},
        repeat=2,
        per="results.images",
        latency="batch_s",
        name="first",
        seed=7,
    )
    rows = {row.overrides[0]: row for row in report.rows}
    assert [rows[f"batch_size={n}"].status for n in (1, 4, 16)] == [
        "measured",
        "measured",
        "out of memory",
    ]
    four = rows["batch_size=4"]
    assert (four.gpu, four.runs, four.outputs, four.usd_per_output) == (None, 2, 4.0, None)
    assert four.latency == {50: 0.2, 95: 0.4, 99: 0.4}
    assert four.peak_memory_of == "process"
    assert report.is_whole
    # one worker for all, until one of them ran out of memory
    assert (project / "calls.txt").read_text() == "setup small\n"
    # ordinary runs: a warm-up and two of each that fits, one that doesn't
    runs = find_runs(f"tags.bench == '{report.bench_id}'")
    assert len(runs) == 7
    assert len(find_runs("tags.repeat == 'warm-up'")) == 3
    assert len(find_runs("tags.case == 'here batch_size=4' and name == 'first'")) == 3
    again = report_on(find_bench(runs_dir, "first"), per="config.batch_size")
    assert {row.outputs for row in again.rows} == {1.0, 4.0, None}


@pytest.mark.slow
def test_a_run_of_several_processes_is_measured_by_its_first_one(runs_dir: Path) -> None:
    pytest.importorskip("torch")
    report = bench(
        Regression,
        {"steps": 2},
        repeat=1,
        per="results.world_size",
        latency="step_of_rank",
        launch="torchrun",
        nproc_per_node=2,
    )
    [row] = report.rows
    assert (row.status, row.runs, row.outputs) == ("measured", 1, 2.0)
    assert set(row.latency.values()) == {0.0}  # rank 0 alone logs
    runs = find_runs(f"tags.bench == '{report.bench_id}'")
    specs = [folder_of(run).read_spec() for run in runs]
    assert {(spec.launch, spec.nproc_per_node) for spec in specs} == {("torchrun", 2)}
    assert len(specs) == 2
    # what resumes it starts the same
    spec = find_bench(runs_dir, "last").read_spec()
    assert (spec.launch, spec.nproc_per_node) == ("torchrun", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "slurm"}, "on Slurm each run is a job of its own; measure on a node"),
        ({"nproc_per_node": 2}, "add launch='torchrun'"),
        ({"launch": "torchrun"}, "nproc_per_node=2"),
        ({"launch": "torchrun", "nproc_per_node": 2, "nodes": 2}, "nodes=2 is for a run on Modal"),
    ],
)
def test_what_can_not_be_measured_is_refused(
    project: Path, runs_dir: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bench(DRAW, **options)
    assert message in " ".join((str(caught.value), *caught.value.problems))
    assert not any(runs_dir.iterdir())


@pytest.mark.slow
def test_resuming_measures_what_is_missing(project: Path, runs_dir: Path) -> None:
    report = bench(DRAW, vary=["batch_size=2,3"], repeat=1)
    assert not report.is_whole
    assert {row.status for row in report.rows} == {"measured", "failed"}
    assert "ValueError: three is not supported" in [row.problem for row in report.rows]
    (project / "mended").touch()
    folder = find_bench(runs_dir, "last")
    ended: list[str] = []
    again = resume_bench(folder, on_run=lambda run: ended.append(run.case.key))
    assert ended == ["here batch_size=3"] * 2
    assert again.is_whole
    assert resume_bench(folder, on_run=lambda run: ended.append(run.case.key)).is_whole
    assert len(ended) == 2


@pytest.mark.slow
def test_leaving_a_bench_ends_its_run_and_keeps_what_was_measured(
    project: Path, runs_dir: Path
) -> None:
    spec = plan_bench(DRAW, read_space(["batch_size=1,2"]), repeat=2)
    ended = 0

    def interrupt_at_third(_run: Any) -> None:
        nonlocal ended
        ended += 1
        if ended == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(spec, on_run=interrupt_at_third)
    folder = find_bench(runs_dir, "last")
    report = report_on(folder)
    assert {row.overrides[0]: row.status for row in report.rows} == {
        "batch_size=1": "measured",
        "batch_size=2": "not measured",
    }
    assert resume_bench(folder).is_whole


def test_a_function_without_a_set_up_is_measured_too(project: Path) -> None:
    [row] = bench("draw.py:plain", {"n": 3}, repeat=1, per="n").rows
    assert (row.status, row.outputs, row.overrides) == ("measured", 3.0, ())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"vary": {"batchsize": [1]}}, r"batchsize: unknown field.*did you mean 'batch_size'"),
        ({"vary": ["batch_size=1,x"]}, r"batch_size: given 'x'.*\(at batch_size=x\)"),
        ({"vary": ["batch_size=log:1:9"]}, "has no end of values; list those to compare"),
        ({"config": {"modle": "x"}}, "did you mean 'model'"),
        ({"repeat": 0}, "repeat"),
        ({"repeats": 2}, "did you mean 'repeat'"),
        ({"max_cost": 1}, "caps what runs cost on Modal"),
        ({"per": "config.batch"}, r"the config has no config\.batch.*'batch_size'"),
        ({"gpu": "t4", "backend": "local"}, "leave --gpu out to measure"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    project: Path, runs_dir: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(Error, match=says):
        bench(DRAW, **arguments)
    assert list(runs_dir.iterdir()) == []


def test_gpu_types_are_checked_one_by_one() -> None:
    with pytest.raises(GpuTypeError, match="did you mean 'h100'"):
        plan_bench(DRAW, None, gpu="t4,h10")
    with pytest.raises(GpuTypeError, match="names t4 twice"):
        plan_bench(DRAW, None, gpu="t4,t4")
    spec = plan_bench(f"{__file__}:project", None, gpu="A10,h100:2")
    assert (spec.gpus, spec.backend) == (("a10g", "h100:2"), "modal")
    file = {"requirements": Path("needs.txt")}
    spec = plan_bench(f"{__file__}:project", None, backend="modal", backend_options=file)
    assert (spec.gpus, spec.backend_options) == (("a10g",), {"requirements": "needs.txt"})


def test_a_bench_is_found_by_name_and_id_or_the_nearest_is_named(
    project: Path, runs_dir: Path
) -> None:
    with pytest.raises(RunNotFoundError, match="there are no benches"):
        find_bench(runs_dir, "last")
    report = bench("draw.py:plain", repeat=1, name="mine")
    for reference in ("mine", "last", report.bench_id, report.bench_id[:10]):
        assert find_bench(runs_dir, reference).path == report.bench_dir
    with pytest.raises(RunNotFoundError, match="did you mean 'last'"):
        find_bench(runs_dir, "lst")


def test_one_process_at_a_time_runs_a_bench(project: Path, runs_dir: Path) -> None:
    bench("draw.py:plain", repeat=1)
    folder = find_bench(runs_dir, "last")
    with folder.locked(), pytest.raises(Error, match="is being run by another process"):
        resume_bench(folder)


def test_a_secret_in_the_config_is_not_recorded_so_the_bench_is_not_resumed(
    project: Path, runs_dir: Path
) -> None:
    (project / "keyed.py").write_text("def keyed(api_key: str = ''):\n    return 1\n")
    bench("keyed.py:keyed", {"api_key": "sesame-opens-it"}, repeat=1)
    folder = find_bench(runs_dir, "last")
    assert "sesame" not in (folder.path / "bench.json").read_text()
    with pytest.raises(Error, match="start a new bench with it"):
        resume_bench(folder)


def test_a_config_is_a_dict(project: Path) -> None:
    wrong: Any = ["n=1"]
    with pytest.raises(ConfigError, match="config is a dict of fields, not a list"):
        bench("draw.py:plain", wrong)


def test_without_costs_there_is_nothing_to_plot(project: Path) -> None:
    report = bench("draw.py:plain", repeat=1)
    with pytest.raises(ConfigError, match="runs on this machine cost nothing"):
        report.plot("plot.png")


def test_a_bench_stops_when_the_money_is_spent(
    modal_emulator: Emulator, project: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_EXPERIMENTS_MAX_COST_PER_DAY", "1")
    spec = plan_bench("draw.py:plain", None, gpu="t4,l4", repeat=1, timeout_s=60)

    def spend_all(*_: Any) -> None:  # as another command does at that moment
        ask = Ask("20261125-120000-0000000", 1, runs_dir, "a run on t4", 1.0, 1.0)
        open_ledger().reserve([ask], "run:other", Cap("", None, ""), Cap("", None, ""))

    report = run_bench(spec, on_begin=spend_all)
    assert "the day's cap of $1.00 is too low" in str(report.stopped)
    assert [row.status for row in report.rows] == ["not measured"] * 2
    # a cap of its own may be replaced, and is kept
    folder = find_bench(runs_dir, "last")
    monkeypatch.delenv("ML_EXPERIMENTS_MAX_COST_PER_DAY")
    with pytest.raises(BudgetError, match=r"the cap of \$0.0010 is too low"):
        resume_bench(folder, max_cost=0.001)
    assert resume_bench(folder, max_cost=2).is_whole
    assert folder.read_spec().max_cost == 2
