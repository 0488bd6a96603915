"""Points are prepared while others run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments import sweep
from ml_experiments.execution.worker.pool import TemplatePool
from ml_experiments.runner.sweeps import controller

EDITS = """
import time
from pathlib import Path

VALUE = 1

def train(n: int = 0):
    if n == 0:
        file = Path(__file__)
        file.write_text(file.read_text().replace("VALUE = 1", "VALUE = 22"))
        time.sleep(1.2)
    return VALUE
"""
NAP = """
import time

def nap(n: int = 0):
    time.sleep(0.2)
    return n
"""


def test_a_point_that_was_prepared_before_an_edit_runs_what_was_edited(tmp_path: Path) -> None:
    (tmp_path / "edits.py").write_text(EDITS)
    points = list(sweep(f"{tmp_path}/edits.py:train", {"n": range(3)}, parallel=1))
    assert [point.result.results for point in points] == [1, 22, 22]


def test_the_next_point_is_prepared_while_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nap.py").write_text(NAP)
    templates, prepared = [], []
    prepare, get = controller.prepare_point, TemplatePool.get
    monkeypatch.setattr(
        controller, "prepare_point", lambda *args: prepared.append(args[2]) or prepare(*args)
    )
    monkeypatch.setattr(
        TemplatePool, "get", lambda *args: templates.append(get(*args)) or templates[-1]
    )
    for ended, _ in enumerate(sweep(f"{tmp_path}/nap.py:nap", {"n": range(4)}, parallel=1), 1):
        assert len(prepared) == min(ended + 1, 4)  # each once
        if ended == 2:
            break  # with one that is prepared, and never starts
    assert {template.users for template in templates} == {0}
