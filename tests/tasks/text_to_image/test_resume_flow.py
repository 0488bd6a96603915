"""A picture run that is resumed keeps what it has drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from PIL import Image

from ml_experiments import LocalBackend
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunResult
from tests.support.pictures import KilledOnce, difference, draw, pixels

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {"num_images": 10, "batch_size": 2}


def pictures_of(run_dir: Path) -> dict[str, tuple[int, int]]:
    files = (run_dir / "artifacts").glob("0*.png")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def steps_of(result: RunResult) -> list[int]:
    assert result.run_dir is not None
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_killed_run_keeps_its_whole_pictures_and_ends_as_if_uninterrupted(
    warm_backend: LocalBackend,
) -> None:
    whole = draw(warm_backend, **CONFIG)
    killed = draw(warm_backend, KilledOnce, **CONFIG)
    assert killed.error is not None
    assert killed.run_dir is not None
    before = pictures_of(killed.run_dir)
    assert len(before) == 4
    damaged, foreign = sorted(before)[1], sorted(before)[2]
    path = killed.run_dir / "artifacts" / damaged
    path.write_bytes(path.read_bytes()[:-30])
    (killed.run_dir / "artifacts" / sorted(before)[3]).replace(path.parent / foreign)
    resumed = resume_run(RunFolder(killed.run_dir), backend=warm_backend).result()
    assert difference(pixels(whole), pixels(resumed)) <= 1
    after = pictures_of(killed.run_dir)
    assert after[sorted(before)[0]] == before[sorted(before)[0]]
    assert all(after[name] != before[name] for name in sorted(before)[1:])
    assert resumed.results["kept_images"] == 1
    assert steps_of(resumed) == steps_of(whole) == [2, 4, 6, 8, 10]
    records = [[{**r, "path": None} for r in run.results["images"]] for run in (whole, resumed)]
    assert records[0] == records[1]
    sheets = [Image.open(run.load(run.results["contact_sheet"])) for run in (whole, resumed)]
    assert sheets[0].size == sheets[1].size
