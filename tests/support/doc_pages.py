"""Follows a page of the documentation as its reader does."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# what differs between two runs, or between two machines
VARIES = (
    (re.compile(r"\d{8}-\d{6}-\w{7}"), "RUN"),
    (re.compile(r"^(seconds|peak memory|import|cost) .*$"), r"\1 …"),
    (re.compile(r"^(RUN +\w+) +\d+\.\d+"), r"\1 …"),
    (re.compile(r"\b(in|after) \d+\.\d+ ?s\b"), r"\1 … s"),
    (re.compile(r"\s+"), " "),
)


def follow(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Go through a page from its beginning, in one folder.

    A block that begins with `# NAME` is written to that file. Other Python blocks are programs; a
    comment behind a `print` is what it has to print. Commands of `console` blocks are executed,
    and what is shown below one is compared with what it prints: the line `…` stands for any
    lines, and `…` in a line for anything. A comment `exit code N` behind a command is its exit
    code. `text` blocks are only read.
    """
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = re.match(r"# ([\w/.-]+\.\w+)\n", block)
        if language in ("python", "yaml", "toml", "json") and named:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            code, printed = run([sys.executable, "-c", block], folder, environment)
            assert code == 0, f"{block}\n{printed}"
            expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
            assert [line for line in expected if line not in printed.splitlines()] == [], printed
        elif language == "console":
            for command, expected_code, shown in commands(block):
                if command.startswith("make "):
                    continue
                code, printed = run(command, folder, environment)
                assert code == expected_code, f"{command}\n{printed}"
                check_output(shown, printed, command)


def run(command: str | list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
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
    """Compare; the line `…` stands for any lines, and `…` in a line for any characters."""
    actual = [plain(line) for line in printed.splitlines()]
    expected = [plain(line) for line in shown]
    pattern = "".join(
        r"(?:.*\n)*?" if e == "…" else re.escape(e).replace("…", ".*") + r"\n" for e in expected
    )
    if expected and not re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)):
        difference = "\n".join(difflib.ndiff(expected, actual))
        pytest.fail(f"{command}\n{difference}\n--- printed:\n{printed}")
