"""`ml-experiments check-resume`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.command import call

STEPS = "tests.support.resumable_experiments:Steps"


def check(way: str, *options: str) -> subprocess.CompletedProcess[str]:
    return call("check-resume", STEPS, f"way={way}", "--seed", "1", "--kill-seed", "7", *options)


@pytest.mark.slow
def test_it_says_what_it_does_and_that_it_is_the_same() -> None:
    done = check("right", "--kills", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "same: killed 2 times and resumed, it came to the same 22 metrics and results\n"
    )
    lines = [line.partition(" ")[0] for line in done.stderr.splitlines()]
    assert lines == ["uninterrupted:", "kill", *["attempt"] * 5]
    assert "\x1b" not in done.stderr


@pytest.mark.slow
def test_a_difference_is_named_with_its_step_and_a_hint() -> None:
    done = check("forgets", "--kills", "1")
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    assert first.startswith("different: value at step ")
    assert "a part of the state is not in the checkpoint" in done.stdout
    done = check("clock", "--kills", "1", "--json")
    assert done.returncode == 1
    outcome = json.loads(done.stdout)
    assert (outcome["passed"], outcome["is_deterministic"]) == (False, False)
    assert outcome["differences"][0]["name"] == "results.ended"
    assert check("clock", "--kills", "1", "--ignore", "ended").returncode == 0
    assert check("clock", "--kills", "1", "--tolerance", "1e-3").returncode == 0
    done = check("clock", "--kills", "1", "--ignore", "endet")
    assert done.returncode == 2
    assert "no metric and no result 'endet' (did you mean 'ended'?)" in done.stderr


@pytest.mark.slow
def test_failures_and_what_can_not_be_checked_have_clear_answers() -> None:
    done = check("fails")
    assert done.returncode == 1
    assert done.stdout.startswith("failed: it fails without being killed\n")
    assert "ValueError: a bad batch" in done.stdout
    done = check("refuses", "--kills", "1")
    assert done.returncode == 1
    assert done.stdout.startswith("failed: it fails when it is resumed\n")
    done = check("none")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "save one with current_run().save_checkpoint(state, step=step)" in done.stderr
    done = call("check-resume", STEPS, "step=3")
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr
