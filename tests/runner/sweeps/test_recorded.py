"""What the run folders and the journal of a sweep tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ml_experiments import sweep
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.sweeps.controller import Progress
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.recorded import count_repeated, recorded_points
from ml_experiments.runner.sweeps.sweep import resume_sweep


@pytest.mark.parametrize("options", [{}, {"parallel": 3}, {"batch": 4, "parallel": 2}])
def test_a_point_that_is_suggested_twice_runs_once(
    project: Path, runs_dir: Path, options: dict[str, Any]
) -> None:
    space = {"steps": [1, 2]}
    points = list(
        sweep("train.py:train", space, sampler="random", trials=10, minimize="loss", **options)
    )
    assert len(points) == len((project / "calls.txt").read_text().splitlines()) == 2
    folder = find_sweep(runs_dir, "last")
    assert count_repeated(folder, recorded_points(folder)) == 8
    begun: list[Progress] = []
    resumed = resume_sweep(
        folder,
        observer=Observer(),
        on_begin=lambda _folder, _spec, progress: begun.append(progress),
    )
    assert list(resumed) == []
    assert (begun[0].repeated, begun[0].is_whole) == (8, True)


def test_a_point_that_has_failed_runs_again_only_when_the_sweep_is_resumed(
    project: Path, runs_dir: Path
) -> None:
    points = list(sweep("train.py:fails", {"lr": [0.1, 0.9]}, sampler="random", trials=8))
    assert sorted(str(point.result.status) for point in points) == ["error", "success"]
    folder = find_sweep(runs_dir, "last")
    (project / "mended").touch()
    assert len(list(resume_sweep(folder, observer=Observer()))) == 1
    ended = recorded_points(folder)
    assert {str(point.result.status) for point in ended} == {"success"}
    assert count_repeated(folder, ended) == 6
    assert len((project / "calls.txt").read_text().splitlines()) == 3
