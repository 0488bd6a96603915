"""The ranking of GPU types, and how good its predictions were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.cli.main import main
from ml_experiments.runner.bench.history import read_history
from ml_experiments.runner.bench.recommending import PREDICTIONS, Recommendation, recommend
from tests.support.past_runs import write_past_run


def recommended(runs_dir: Path, **options: Any) -> Recommendation:
    return recommend(read_history(runs_dir, "train.Train", {}, "results.images"), **options)


def write_two_types(runs_dir: Path) -> None:
    """Four images take 8 s on a T4, for which they cost less, and 2 s on an H100."""
    for number, seconds in enumerate((20.0, 7.0, 9.0)):
        write_past_run(runs_dir, number, "t4", seconds=seconds)
    for number, seconds in enumerate((9.0, 2.0, 2.0), 3):
        write_past_run(runs_dir, number, "h100", seconds=seconds)


def test_gpu_types_are_ranked_by_the_cost_of_an_output_with_the_set_up_once(
    runs_dir: Path,
) -> None:
    write_two_types(runs_dir)
    found = recommended(runs_dir, outputs=1000)
    assert [p.gpu for p in found.ranking] == ["t4", "h100"]
    t4 = found.ranking[0]
    # three seconds of set-up, then 7/4, 8/4 or 9/4 seconds for each; the first run warmed up
    assert t4.seconds == (1753.0, 2003.0, 2253.0)
    assert (t4.runs, t4.seconds_each) == (2, 2.0)
    assert t4.usd_each == pytest.approx(2.003 * (0.000164 + 2 * 0.0000131 + 4 * 0.00000222))
    assert found.fastest is not None
    assert found.fastest.gpu == "h100"
    assert found.without_data[:2] == ("l4", "a10g")
    # by default, as many as a run has had; the set-up weighs more
    assert recommended(runs_dir).outputs == 4


def test_the_slowest_run_decides_what_is_within_deadline_and_budget(runs_dir: Path) -> None:
    write_two_types(runs_dir)
    found = recommended(runs_dir, outputs=1000, deadline_s=2100)
    assert [p.gpu for p in found.ranking] == ["h100"]
    assert [(p.gpu, p.problem) for p in found.outside] == [("t4", "too slow")]
    found = recommended(runs_dir, outputs=1000, budget_usd=0.5)
    assert [(p.gpu, p.problem) for p in found.outside] == [("h100", "too dear")]


def test_memory_rules_gpu_types_out(runs_dir: Path) -> None:
    write_past_run(runs_dir, 1, "a10g", oom=True)
    write_past_run(runs_dir, 2, "h100", peak=45.5)
    found = recommended(runs_dir)
    assert set(found.ruled_out) == {"t4", "l4", "a10g", "a100"}
    assert found.ruled_out["a10g"].endswith("ran out of memory")
    assert found.ruled_out["l4"].endswith("ran out of memory on a10g, which has no less")
    assert found.ruled_out["a100"].endswith("took 45.5 GiB on h100")
    assert found.without_data[0] == "l40s"


def test_a_set_up_that_another_set_of_values_has_made_counts(runs_dir: Path) -> None:
    for number, batch_size in enumerate((1, 1, 4, 4)):
        write_past_run(runs_dir, number, "t4", config={"batch_size": batch_size}, seconds=4)
    found = recommended(runs_dir, outputs=1)
    assert {p.seconds[1] for p in found.ranking} == {4.0}
    assert {p.overrides for p in found.ranking} == {("batch_size=1",), ("batch_size=4",)}


def test_values_that_are_too_large_for_a_gpu_type_are_named(runs_dir: Path) -> None:
    write_past_run(runs_dir, 1, "t4", config={"batch_size": 1})
    write_past_run(runs_dir, 2, "t4", config={"batch_size": 64}, oom=True)
    found = recommended(runs_dir)
    assert [p.overrides for p in found.ranking] == [("batch_size=1",)]
    assert list(found.ruled_out) == ["t4 batch_size=64"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["recommend", *arguments])
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out or captured.err


def test_the_last_prediction_is_scored_against_the_runs_that_came(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_types(runs_dir)
    command = ("train.Train", "--per", "results.images", "--outputs", "1000")
    code, text = call(capsys, *command)
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "for 1,000 images, with one set-up:"
    assert lines[2].split()[:2] == ["1", "t4"]
    assert "not scored yet: no run has come since a prediction" in text
    assert lines[-2:] == ["cheapest: t4", "fastest: h100"]
    call(capsys, *command)  # nothing has come: the prediction is the same
    assert len((runs_dir / PREDICTIONS).read_text().splitlines()) == 1
    with (runs_dir / PREDICTIONS).open("a") as file:
        file.write('{"asked": {"exper')  # a full disk
        file.write("\n")
    write_past_run(runs_dir, 10, "h100", seconds=2.5, pid=2)
    _, text = call(capsys, *command)
    assert "  h100: 0.5 s each, came 0.625 s in 1 run (-20%)" in text
    record = json.loads(call(capsys, *command, "--json")[1])
    [score] = record["scores"]
    assert (score["gpu"], score["runs"], score["error"]) == ("h100", 1, pytest.approx(-0.2))
    assert [p["gpu"] for p in record["ranking"]] == ["t4", "h100"]


def test_it_says_when_it_lacks_data(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = call(capsys, "train.Train", "batch_size=4")
    assert code == 1
    assert text.startswith(f"there is no run of train.Train in {runs_dir}\n")
    assert "measure with: ml-experiments bench train.Train batch_size=4 --gpu t4,l4,a10g" in text
    assert text.endswith("there is no data to recommend from\n")
    write_past_run(runs_dir, 1, "t4")
    assert "(did you mean 'train.Train'?)" in call(capsys, "train.Trian")[1]
    assert call(capsys, "train.Train")[1].endswith("cheapest: t4 (from 1 run only)\n")
    code, text = call(capsys, "train.Train", "--deadline", "1s")
    assert code == 1
    assert text.endswith("no GPU type that was measured is within the deadline and the budget\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--outputs", "0"), "--outputs 0 is not a number above 0"),
        (("--budget", "-1"), "--budget -1 is not a number above 0"),
        (("--outputs", "nan"), "--outputs nan is not a number above 0"),
        (("--deadline", "soon"), "'soon' is not a duration"),
        (("--gpu=t4",), "no such option '--gpu'"),
    ],
)
def test_mistakes_exit_with_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = call(capsys, "train.Train", *arguments)
    assert code == 2
    assert says in text
