"""What earlier runs tell of GPU types."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.errors import ConfigError
from ml_experiments.runner.bench.history import read_history
from tests.support.past_runs import write_past_run


def test_runs_of_the_experiment_that_ended_count_with_gpu_seconds_and_price(
    runs_dir: Path,
) -> None:
    write_past_run(runs_dir, 1, "t4", seconds=2.0, pid=1)
    write_past_run(runs_dir, 2, "h100,a100", seconds=1.0, devices=["NVIDIA A100-SXM4-40GB"])
    write_past_run(runs_dir, 3, "l4", oom=True)
    write_past_run(runs_dir, 4, "t4", experiment="other.train.Train")
    write_past_run(runs_dir, 5, None, seconds=4.0)
    history = read_history(runs_dir, "train.Train", {}, "results.images")
    first, second, third, local = history.runs
    assert [str(run.gpu) for run in history.runs] == ["t4", "a100", "l4", "None"]
    assert (first.seconds, first.outputs, first.setup_s) == (2.0, 4.0, 3.0)
    assert first.usd_per_s == pytest.approx(0.000164 + 2 * 0.0000131 + 4 * 0.00000222)
    assert (third.is_out_of_memory, third.seconds) == (True, None)
    assert (local.usd_per_s, second.process == first.process) == (None, False)
    assert history.uncounted is None


def test_each_second_of_a_run_on_several_machines_costs_as_much_as_on_all(runs_dir: Path) -> None:
    write_past_run(runs_dir, 1, "t4")
    write_past_run(runs_dir, 2, "t4", nodes=3)
    one, three = read_history(runs_dir, "train.Train", {}, "results.images").runs
    assert one.usd_per_s is not None
    assert three.usd_per_s == pytest.approx(3 * one.usd_per_s)
    assert (one.overrides, three.overrides) == ((), ("nodes=3",))


def test_only_runs_with_the_given_values_count(runs_dir: Path) -> None:
    for number, batch_size in enumerate((1, 4, 4)):
        write_past_run(runs_dir, number, "t4", config={"batch_size": batch_size, "model": "a"})
    history = read_history(runs_dir, "train.Train", {"batch_size": 4}, None)
    assert [run.overrides for run in history.runs] == [(), ()]
    every = read_history(runs_dir, "train.Train", {}, None)
    assert [run.overrides for run in every.runs] == [
        ("batch_size=1",),
        ("batch_size=4",),
        ("batch_size=4",),
    ]
    with pytest.raises(
        ConfigError, match=r"did you mean 'batch_size'.*there are batch_size, model"
    ):
        read_history(runs_dir, "train.Train", {"batchsize": 4}, None)


def test_runs_on_this_machine_group_none_on_modal_and_hide_none(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.runner.bench.history._MAX_RUNS", 2)
    for number in range(2):
        write_past_run(runs_dir, number, "t4", config={"batch_size": 1})
    for number in range(2, 12):
        write_past_run(runs_dir, number, None, config={"batch_size": number})
    history = read_history(runs_dir, "train.Train", {}, None)
    on_modal = [run for run in history.runs if run.gpu is not None]
    assert [run.overrides for run in on_modal] == [(), ()]
    assert history.mixed == ()


def test_a_field_with_many_values_is_no_group(runs_dir: Path) -> None:
    for number in range(9):
        write_past_run(runs_dir, number, "t4", config={"prompt": f"a {number}"})
    history = read_history(runs_dir, "train.Train", {}, "results.image")
    assert history.mixed == ("prompt",)
    assert {run.overrides for run in history.runs} == {()}
    assert "did you mean 'images'" in str(history.uncounted)
