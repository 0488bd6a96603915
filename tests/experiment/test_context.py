"""What a running experiment has in `current_run()`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_experiments.errors import Error
from ml_experiments.experiment.context import RunContext, current_run, set_current_run
from tests.support.docstrings import example_of, run_example


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[list[Any]]:
    """A run in this process, and what is reported to it."""
    reported: list[Any] = []
    context = RunContext(
        run_id="one",
        _output_dir=tmp_path / "artifacts",
        _checkpoint_dir=tmp_path / "checkpoints",
        seed=3,
        _log=lambda metrics, step: reported.append((dict(metrics), step)),
        _progress=lambda *progress: reported.append(progress),
    )
    set_current_run(context)
    yield reported
    set_current_run(None)


def test_outside_of_a_run_there_is_none() -> None:
    with pytest.raises(Error, match="only while an experiment runs"):
        current_run()


def test_the_folders_are_made_when_they_are_first_used(reports: list[Any], tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert current_run().output_dir == tmp_path / "artifacts"
    assert list(tmp_path.iterdir()) == [tmp_path / "artifacts"]
    assert current_run().checkpoint_dir.is_dir()


def test_the_device_is_one_that_torch_has(reports: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    assert torch.zeros(1, device=current_run().device).device.type == current_run().device


def test_numbers_of_libraries_are_steps_and_progress(reports: list[Any]) -> None:
    steps = [np.arange(4)[3], np.uint8(3), np.array(3), np.float32(3), 3.0, True + 2]
    torch = sys.modules.get("torch")
    steps += [torch.tensor(3)] if torch else []
    for step in steps:
        current_run().log({}, step=step)
    assert reports == [({}, 3)] * len(steps)
    assert all(type(step) is int for _, step in reports)
    reports.clear()
    current_run().progress(np.int64(1), np.float32(2), text=Path("a.csv"))  # type: ignore[arg-type]
    current_run().progress(Fraction(1, 2), Decimal(1))  # type: ignore[arg-type]
    assert json.loads(json.dumps(reports)) == [[1, 2, "a.csv"], [0.5, 1, ""]]


@pytest.mark.parametrize("step", ["one", 0.5, [1], np.ones(2), float("nan"), np.nan])
def test_a_step_that_is_no_whole_number_is_refused(reports: list[Any], step: Any) -> None:
    with pytest.raises(TypeError, match="step must be a whole number, not"):
        current_run().log({}, step=step)
    assert reports == []


def test_the_examples_in_the_docstrings_work(reports: list[Any], tmp_path: Path) -> None:
    for name in ("output_dir", "checkpoint_dir", "log", "progress"):
        exec(example_of(getattr(RunContext, name)), {"current_run": current_run})
    assert (tmp_path / "artifacts" / "samples.txt").read_text() == "seven"
    assert (tmp_path / "checkpoints" / "step.txt").read_text() == "1"
    assert reports == [
        *(({"loss": 1 / (step + 1)}, step) for step in range(3)),
        *((epoch, 3, f"epoch {epoch}") for epoch in range(3)),
    ]
    assert run_example(current_run, tmp_path) == "{'loss': 0.25}\n"


def test_the_example_of_the_device_works(reports: list[Any]) -> None:
    pytest.importorskip("torch")
    exec(example_of(RunContext.device), {"current_run": current_run})
