"""The folder of a sweep, as a user may leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.errors import RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.sweeps.folder import SweepFolder
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.search_space.space import read_space


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axes": []}, "an axis has no values, or there is none"),
        ({"axes": [{"name": "lr", "values": []}]}, "an axis has no values"),
        ({"axes": [{"nme": "lr", "low": 0}]}, "an axis is not valid: .*'nme'"),
        ({"axes": [{"name": "n", "low": 0, "high": 2, "step": 0}]}, "an axis is not valid"),
        ({"sampler": "random"}, "it has no end of points"),
    ],
)
def test_a_spec_that_was_edited_into_something_else_is_named(
    project: Path, runs_dir: Path, changes: dict[str, Any], says: str
) -> None:
    spec = plan_sweep("train.py:train", read_space(["lr=1,2"]))
    folder = SweepFolder.create(runs_dir, spec, Redactor(()))
    file = folder.path / "sweep.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(RunFolderError, match=f"sweep.json is not a sweep: {says}"):
        folder.read_spec()
