"""What the score of a point is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ml_experiments import sweep
from ml_experiments.runner.sweeps.points import comparable

RESULTS = """
def scored(x=1):
    return {"val.loss": 0.5, "val": {"f1": {0: 0.75}}, "huge": -(10**400), "yes": True}
"""


@pytest.mark.parametrize(
    ("metric", "score", "problem"),
    [
        ("val.loss", 0.5, None),  # the name of a key, with its dot
        ("val.f1.0", 0.75, None),
        ("val.f1.1", None, "the results have no results.val.f1.1; there are 0"),
        ("huge", None, "results.huge is -inf, which can't be compared"),
        ("yes", None, "results.yes is True, not a number"),
    ],
)
def test_a_score_is_a_finite_number_at_any_depth_of_the_results(
    project: Path, metric: str, score: float | None, problem: str | None
) -> None:
    (project / "scores.py").write_text(RESULTS)
    [point] = sweep("scores.py:scored", {"x": 1}, minimize=metric)
    assert (point.score, point.problem) == (score, problem)


@pytest.mark.parametrize(
    ("step", "value", "found"),
    [
        (0, 1, (0, 1.0)),
        (3, -(10**400), (3, -math.inf)),
        (3, True, None),
        (3, "1", None),
        (10**25, 1.0, None),
        (-1, 1.0, None),
        (None, 1.0, None),
    ],
)
def test_a_pruner_compares_numbers_at_steps_that_can_be_counted(
    step: object, value: object, found: tuple[int, float] | None
) -> None:
    assert comparable(step, value) == found
