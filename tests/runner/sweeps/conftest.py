"""An experiment to sweep over, in a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

# each run adds a line to calls.txt, and waits where it is told to until there is a file `go`
EXPERIMENT = """
import os, time
from pathlib import Path
from ml_experiments import Experiment, ExperimentConfig, current_run

HERE = Path(__file__).parent


def note(line):
    with (HERE / "calls.txt").open("a") as file:
        file.write(f"{line}\\n")


def train(lr: float = 0.1, steps: int = 1, wait_at: float = -1.0):
    note(f"{lr} {steps}")
    if lr == wait_at:
        (HERE / "waiting").touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)
    for step in range(steps):
        current_run().log({"loss": lr + step}, step=step)
    return {"loss": lr * steps, "nothing": None, "nan": float("nan")}


def fails(lr: float = 0.1, limit: float = 0.5):
    note(lr)
    if lr > limit and not (HERE / "mended").exists():
        raise ValueError(f"{lr} is too large")
    return {"loss": lr}


def logs(lr: float = 0.1, steps: int = 3):
    note(lr)
    for step in range(steps):
        current_run().log({"loss": lr, "other": 1}, step=step)
    while lr > 1:  # it has to be ended
        time.sleep(0.01)
    return {"loss": lr}


class Warm(Experiment):
    class Config(ExperimentConfig):
        model: str
        seed: int = 0

    setup_fields = ("model",)

    def setup(self):
        note(f"setup {self.config.model}")

    def run(self):
        return {"model": self.config.model, "seed": self.config.seed}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the experiment, which is the working folder."""
    (tmp_path / "train.py").write_text(EXPERIMENT)
    (tmp_path / "calls.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
