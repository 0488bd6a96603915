"""The pages of the documentation: their files, programs, commands and outputs are real."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modal_emulator import Emulator

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
# README.md, docs/modal-runner.md, cache.md and emulator.md have tests of their own
PAGES = (
    DOCS / "index.md",
    DOCS / "tutorial.md",
    DOCS / "settings.md",
    *sorted((DOCS / "how-to").glob("*.md")),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# what differs between two runs, or between two machines
VARIES = (
    (re.compile(r"\d{8}-\d{6}-\w{7}"), "RUN"),
    (re.compile(r"^(seconds|peak memory|import|cost) .*$"), r"\1 …"),
    (re.compile(r"^(RUN +\w+) +\d+\.\d+"), r"\1 …"),
    (re.compile(r"\s+"), " "),
)


@pytest.fixture
def environment(modal_emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "COLUMNS": "120", "PYTHONPATH": str(tmp_path)}
    kept = {k: v for k, v in os.environ.items() if k != "ML_EXPERIMENTS_RUNS_DIR"}
    return {**kept, **modal_emulator.environment, **own}


def run(command: str | list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    return done.returncode, done.stdout


def commands(block: str) -> list[tuple[str, int, list[str]]]:
    """Return the commands of a block, each with its exit code and the output that is shown."""
    found: list[tuple[str, int, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            command, _, comment = line[2:].partition("  #")
            code = re.search(r"exit code (\d)", comment)
            found.append((command.strip(), int(code[1]) if code else 0, []))
        else:
            found[-1][2].append(line)
    return found


def plain(line: str) -> str:
    for pattern, replacement in VARIES:
        line = pattern.sub(replacement, line)
    return line.strip()


def check_output(shown: list[str], printed: str, command: str) -> None:
    """Compare; the line `…` stands for any lines."""
    actual = [plain(line) for line in printed.splitlines()]
    expected = [plain(line) for line in shown]
    pattern = "".join(r"(?:.*\n)*?" if e == "…" else re.escape(e) + r"\n" for e in expected)
    if expected and not re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)):
        difference = "\n".join(difflib.ndiff(expected, actual))
        pytest.fail(f"{command}\n{difference}\n--- printed:\n{printed}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(
    page: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Go through a page as a reader does, from its beginning, in one folder."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = re.match(r"# ([\w/.-]+\.\w+)\n", block)
        if language in ("python", "yaml", "toml", "json") and named:
            (tmp_path / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            code, printed = run([sys.executable, "-c", block], tmp_path, environment)
            assert code == 0, f"{block}\n{printed}"
            expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
            assert [line for line in expected if line not in printed.splitlines()] == [], printed
        elif language == "console":
            for command, expected_code, shown in commands(block):
                code, printed = run(command, tmp_path, environment)
                assert code == expected_code, f"{command}\n{printed}"
                check_output(shown, printed, command)
