"""`ml-experiments runs replay`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import call
from tests.support.git_repo import make_repo

TRAIN = """
import os, random, signal, sys
def train(noise=False):
    draw = random.SystemRandom().random if noise else random.random
    return {"loss": draw()}
def crash():
    sys.exit(3)
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo", {"train.py": TRAIN})


@pytest.mark.slow
def test_a_replay_says_whether_the_results_are_the_same(repo: Path) -> None:
    assert call("run", "train.train", cwd=repo).returncode == 0
    done = call("runs", "replay", "last", "--verify", cwd=repo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nthe results are the same\n")
    assert call("run", "train.train", "noise=true", cwd=repo).returncode == 0
    done = call("runs", "replay", "last", "--verify", "--json", cwd=repo)
    assert done.returncode == 1
    compared = json.loads(done.stdout)["compared"]
    assert [outcome["path"] for outcome in compared["outcomes"]] == ["results.loss"]
    assert "not deterministic" in compared["explanation"]
    done = call("runs", "replay", "last", cwd=repo)
    assert done.returncode == 0
    done = call("runs", "replay", "last", "--verify", "--tolerance", "1", cwd=repo)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_failure_that_is_repeated_is_verified(repo: Path) -> None:
    assert call("run", "train.crash", cwd=repo).returncode == 1
    assert call("runs", "replay", "last", "--verify", cwd=repo).returncode == 0
    assert call("runs", "replay", "last", cwd=repo).returncode == 1
    assert call("runs", "replay", "nothing", cwd=repo).returncode == 2


@pytest.mark.slow
def test_a_replay_that_is_cancelled_compares_nothing(repo: Path) -> None:
    assert call("run", "train.interrupted", cwd=repo).returncode == 130
    done = call("runs", "replay", "last", cwd=repo)
    assert done.returncode == 130
    assert "the same" not in done.stdout
