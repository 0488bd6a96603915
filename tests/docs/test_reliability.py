"""docs/reliability.md names tests that exist, each once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
MIN_ROWS = 40


def test_each_test_that_the_page_names_exists() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| fault ")]
    found = [re.fullmatch(r"\|[^|]+\|[^|]+\| `([\w/]+\.py)::(\w+)` \|", row) for row in rows]
    named = [match.groups() for match in found if match is not None]
    assert len(named) == len(rows) >= MIN_ROWS
    assert len(set(named)) == len(named)
    missing = [f"{file}::{name}" for file, name in named if name not in functions_of(TESTS / file)]
    assert missing == []


def functions_of(file: Path) -> set[str]:
    if not file.exists():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
