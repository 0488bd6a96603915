"""README and CONTRIBUTING are true: targets, file trees, links. test_pages.py runs the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import run_experiment
from tests.support.experiments import Counts, Fit, Plain

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def tree(page: str, first_line: str) -> list[str]:
    """Return the names in the first column of a file tree."""
    blocks = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(first_line))
    return [line.split()[0] for line in block.splitlines()]


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_the_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README + CONTRIBUTING
    subprocess.run(["make", "--dry-run", target], cwd=PROJECT, check=True, capture_output=True)


def test_ci_calls_the_command_that_readme_gives_for_tests() -> None:
    commands = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "make test || make test-again" in commands


@pytest.mark.slow
def test_the_tree_of_a_run_folder_is_what_a_run_leaves() -> None:
    named = tree(README, "runs/")[1:]
    assert names_left_by(Plain, {}) == set(named[:4])
    assert names_left_by(Fit, {}) == set(named) - {"checkpoints/"}
    assert names_left_by(Counts, {"until": 1}) == {*named[:4], "checkpoints/"}


def names_left_by(experiment: type, config: dict[str, Any]) -> set[str]:
    folder = run_experiment(experiment, config).raise_for_error().run_dir
    assert folder is not None
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {f"{path.name}/" if path.is_dir() else path.name for path in entries}


def test_the_tree_of_the_project_is_what_is_there() -> None:
    for name in tree(CONTRIBUTING, "ml_experiments/"):
        assert (PROJECT / name).is_dir(), name


def test_every_link_leads_somewhere() -> None:
    links = [
        link for link in re.findall(r"\]\(([^)]+)\)", README + CONTRIBUTING) if "://" not in link
    ]
    assert links
    assert [link for link in links if not (PROJECT / link).exists()] == []
