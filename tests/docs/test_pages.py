"""The pages of the documentation: their files, programs, commands and outputs are real."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from modal_emulator import Emulator
from tests.support.doc_pages import BLOCK, follow

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
# docs/modal-runner.md and docs/cache.md have tests of their own
PAGES = (
    PROJECT / "README.md",
    DOCS / "index.md",
    DOCS / "tutorial.md",
    DOCS / "emulator.md",
    DOCS / "test-your-modal-app.md",
    DOCS / "settings.md",
    *sorted((DOCS / "how-to").glob("*.md")),
)


@pytest.fixture
def environment(modal_emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "COLUMNS": "120", "PYTHONPATH": str(tmp_path)}
    # pages that run pytest show what it prints without options
    others = ("ML_EXPERIMENTS_RUNS_DIR", "PYTEST_ADDOPTS")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, **modal_emulator.environment, **own}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(
    page: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    follow(page, tmp_path, environment)


def test_the_workflow_to_copy_installs_this_distribution_and_runs_the_tests() -> None:
    page = (DOCS / "test-your-modal-app.md").read_text(encoding="utf-8")
    workflow = next(block for language, block in BLOCK.findall(page) if language == "yaml")
    commands = [step["run"] for step in yaml.safe_load(workflow)["jobs"]["test"]["steps"][2:]]
    with (PROJECT / "pyproject.toml").open("rb") as file:
        name = tomllib.load(file)["project"]["name"]
    assert commands[0] == f"pip install {name} pytest uv"
    assert commands[-1] == "pytest -q"


def test_the_reference_pages_are_what_the_commands_and_options_say() -> None:
    script = PROJECT / "scripts" / "reference_pages.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_page_that_shows_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for shown, right in (("5", False), ("7", True), ("…", True)):
        page.write_text(f"```console\n$ echo 7\n{shown}\n```\n")
        if right:
            follow(page, tmp_path, os.environ)
        else:
            with pytest.raises(pytest.fail.Exception):
                follow(page, tmp_path, os.environ)
