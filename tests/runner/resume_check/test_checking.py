"""`check_resume`: kills and resumptions of an experiment, and what came of them."""

from __future__ import annotations

import json

import pytest

from ml_experiments.errors import Error
from ml_experiments.runner.resume_check.checking import ResumeCheck, check_resume
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from tests.support.resumable_experiments import Steps, TrainTorch

PATH = f"{Steps.__module__}:{Steps.__qualname__}"
TORCH_PATH = f"{TrainTorch.__module__}:{TrainTorch.__qualname__}"


def check(way: str, kills: int = 2) -> tuple[ResumeCheck, list[str]]:
    said: list[str] = []
    config = {"way": way}
    outcome = check_resume(PATH, config, kills=kills, seed=1, kill_seed=7, say=said.append)
    return outcome, said


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_comes_to_the_same() -> None:
    outcome, said = check("right", kills=3)
    assert outcome.is_passed
    assert outcome.kills == 3
    assert outcome.compared == 22
    assert outcome.resumed is not None
    assert [attempt.status for attempt in outcome.resumed.attempts] == ["error"] * 3 + ["success"]
    assert all("SIGKILL" in str(a.error) for a in outcome.resumed.attempts[:-1])
    assert len([line for line in said if "killed after" in line]) == 3
    assert any(line.startswith("kill points (seed 7): ") for line in said)
    json.dumps(outcome.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_the_first_step_and_metric_that_differ_are_named() -> None:
    outcome, _ = check("forgets")
    assert not outcome.is_passed
    first = outcome.differences[0]
    assert (first.name, outcome.is_deterministic) == ("value", True)
    assert outcome.resumed is not None
    assert outcome.resumed.run_dir is not None
    # the earliest step after a resumption
    steps = [entry["step"] for entry in RunFolder(outcome.resumed.run_dir).read_metrics()]
    assert first.step in steps
    assert first.step == min(one.step for one in outcome.differences if one.step is not None)
    assert first.first != first.second


@pytest.mark.slow
def test_a_result_that_no_two_runs_share_is_told_from_a_checkpoint_that_lacks_something() -> None:
    outcome, _ = check("clock", kills=1)
    assert [one.name for one in outcome.differences] == ["results.ended"]
    assert outcome.is_deterministic is False
    ignored = check_resume(PATH, {"way": "clock"}, kills=1, kill_seed=7, ignore=("ended",))
    assert ignored.is_passed


@pytest.mark.slow
def test_a_run_that_fails_by_itself_or_when_it_is_resumed_is_the_outcome() -> None:
    outcome, _ = check("fails")
    assert outcome.resumed is None
    assert outcome.uninterrupted.error is not None
    assert outcome.uninterrupted.error.message == "a bad batch"
    outcome, _ = check("refuses")
    assert outcome.resumed is not None
    assert outcome.resumed.status is RunStatus.ERROR
    assert outcome.resumed.error is not None
    assert outcome.resumed.error.message == "can't be resumed"
    assert not outcome.is_passed


@pytest.mark.slow
def test_what_can_not_be_checked_is_an_error_that_says_why() -> None:
    with pytest.raises(Error, match="has saved no checkpoint"):
        check("none")
    with pytest.raises(Error, match="too short to be killed"):
        check_resume(PATH, {"steps": 2, "wait_s": 0})


@pytest.mark.slow
def test_a_torch_model_that_is_killed_at_random_ends_with_exactly_the_same_weights() -> None:
    pytest.importorskip("torch")
    outcome = check_resume(TORCH_PATH, {}, kills=4, seed=3)
    assert outcome.differences == (), outcome.kill_seed
    assert outcome.is_passed
    assert outcome.kills > 0
    assert outcome.compared == 61
