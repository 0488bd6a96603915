"""An experiment to measure, in a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

# each set-up adds a line to calls.txt
EXPERIMENT = """
from pathlib import Path
from ml_experiments import Experiment, ExperimentConfig, current_run

HERE = Path(__file__).parent


class Draw(Experiment):
    class Config(ExperimentConfig):
        model: str = "tiny"
        batch_size: int = 1
        fits: int = 8

    setup_fields = ("model",)

    def setup(self):
        with (HERE / "calls.txt").open("a") as file:
            file.write(f"setup {self.config.model}\\n")

    def run(self):
        if self.config.batch_size > self.config.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.config.batch_size == 3 and not (HERE / "mended").exists():
            raise ValueError("three is not supported")
        for step in range(4):
            current_run().log({"batch_s": (step + 1) / 10}, step=step)
        return {"images": [0] * self.config.batch_size, "none": 0, "n": self.config.batch_size}


def plain(n: int = 1):
    return {"n": n}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the experiment, which is the working folder."""
    (tmp_path / "draw.py").write_text(EXPERIMENT)
    (tmp_path / "calls.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
