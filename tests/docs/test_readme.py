"""README is true: its commands run, its code runs, its file trees are what is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import run_experiment
from modal_emulator import Emulator
from tests.support.experiments import Counts, Fit, Plain

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("console")).splitlines()
    return [line[2:].partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def tree(first_line: str) -> list[str]:
    """Return the names in the first column of a file tree."""
    (block,) = (block for block in blocks("text") if block.startswith(first_line))
    return [line.split()[0] for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that README shows, each named by its first line."""
    for block in blocks("python"):
        first = block.splitlines()[0]
        if re.fullmatch(r"# \w+\.py", first):
            (tmp_path / first[2:]).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.fixture
def environment(modal_emulator: Emulator) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **modal_emulator.environment, "PATH": path}


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_the_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README + (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    subprocess.run(["make", "--dry-run", target], cwd=PROJECT, check=True, capture_output=True)


def test_ci_calls_the_command_that_readme_gives_for_tests() -> None:
    assert "\nmake test\n" in (PROJECT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_command_runs(folder: Path, environment: dict[str, str]) -> None:
    run = [command for command in commands() if not command.startswith("make ")]
    assert len(run) >= 7
    (folder / "ml_experiments").symlink_to(PROJECT / "ml_experiments")
    subprocess.run(
        ["ml-experiments", "run", "train.Train", "lr=wrong", "--timeout", "0.001"],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
    )  # a run that `runs resume last` can take up
    resume = [command for command in run if "runs resume" in command]
    broken = {"ml-experiments doctor"}  # exits with 1 where something is broken
    for command in [*resume, *(command for command in run if command not in resume)]:
        done = subprocess.run(
            shlex.split(command),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        if command not in broken and command not in resume:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_every_program_runs(folder: Path, environment: dict[str, str]) -> None:
    programs = [block for block in blocks("python") if not block.startswith("# ")]
    assert len(programs) >= 2
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{program}\n{done.stderr}"
        expected = re.findall(r"^print\(.*\)  # (.*)$", program, re.MULTILINE)
        assert [line for line in expected if line not in done.stdout.splitlines()] == []


def test_the_tree_of_a_run_folder_is_what_a_run_leaves() -> None:
    named = tree("runs/")[1:]
    assert names_left_by(Plain, {}) == set(named[:4])
    assert names_left_by(Fit, {}) == set(named) - {"checkpoints/"}
    assert names_left_by(Counts, {"until": 1}) == {*named[:4], "checkpoints/"}


def names_left_by(experiment: type, config: dict[str, Any]) -> set[str]:
    folder = run_experiment(experiment, config).raise_for_error().run_dir
    assert folder is not None
    return {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}


def test_the_tree_of_the_project_is_what_is_there() -> None:
    for name in tree("ml_experiments/"):
        assert (PROJECT / name).is_dir(), name


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (PROJECT / link).exists()] == []


def test_the_mistake_that_readme_shows_is_told_so(folder: Path) -> None:
    (block,) = (block for block in blocks("text") if block.startswith("$ ml-experiments run"))
    command, *told = block.splitlines()
    done = subprocess.run(
        [sys.executable, "-m", "ml_experiments", *shlex.split(command)[2:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == told


def test_the_gpu_table_is_what_is_printed() -> None:
    (block,) = (block for block in blocks("text") if block.startswith("$ ml-experiments gpus"))
    done = subprocess.run(
        [sys.executable, "-m", "ml_experiments", "gpus"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert [line.rstrip() for line in done.stdout.splitlines()] == block.splitlines()[1:]
