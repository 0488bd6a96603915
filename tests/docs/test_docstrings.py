"""Each public name has one example in its docstring, which works, and is on the reference page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ml_experiments
from modal_emulator import Emulator
from tests.support.docstrings import example_of, run_example

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
NAMES = ml_experiments.__all__
SLOW = {"BudgetError", "ModalBackend", "SoftTimeout"}
# an example gets these from another name
HELD_BY_OTHERS = {"RunHandle", "Artifact", "RunError", "RunResult", "RunSpec", "SweepPoint"}
HELD_BY_OTHERS |= {"BenchReport", "BenchRow"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES],
)
def test_the_example_of_a_public_name_works(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name in ("BudgetError", "ModalBackend"):
        emulator: Emulator = request.getfixturevalue("modal_emulator")
        assert emulator.environment
    documented = getattr(ml_experiments, name)
    assert re.search(rf"\b{name}\b", example_of(documented)) or name in HELD_BY_OTHERS
    printed = run_example(documented, tmp_path).splitlines()
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", example_of(documented), re.MULTILINE)
    assert [line for line in expected if line not in printed] == [], printed


def test_the_reference_page_has_exactly_the_public_names() -> None:
    named = re.findall(r"^::: ml_experiments\.(\w+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(NAMES)
