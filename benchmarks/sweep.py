"""A sweep of trivial points as a whole command: seconds a point, with what each way records.

Against Hydra's basic launcher, whose points share one process, and joblib's loky, which records
nothing. Both are installed into an environment of their own: Hydra needs another OmegaConf.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

BIN = Path(sys.executable).parent
HYDRA_APP = """
import hydra
from hydra.core.config_store import ConfigStore
from dataclasses import dataclass

@dataclass
class Config:
    x: int = 1

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base=None, config_name="config")
def main(config):
    return config.x + 1

main()
"""
EXPERIMENT = """
from ml_experiments import Experiment, ExperimentConfig


def trivial(x: int = 1):
    return x + 1


class Warm(Experiment):
    class Config(ExperimentConfig):
        x: int = 1
        model: str = "tiny"

    setup_fields = ("model",)

    def setup(self):
        pass

    def run(self):
        return self.config.x + 1
"""
LOKY = """
import sys
import joblib

def trivial(x):
    return x + 1

print(sum(joblib.Parallel(n_jobs=2)(joblib.delayed(trivial)(x) for x in range(int(sys.argv[1])))))
"""


def commands_in(folder: Path, points: int) -> dict[str, list[str]]:
    """Return what is compared; commands run in the folder."""
    (folder / "app.py").write_text(HYDRA_APP)
    (folder / "experiment.py").write_text(EXPERIMENT)
    (folder / "loky.py").write_text(LOKY)
    venv.create(folder / "others", with_pip=True)
    python = str(folder / "others" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "hydra-core", "joblib"]
    subprocess.run(install, check=True, capture_output=True)
    ours = [str(BIN / "ml-experiments"), "sweep"]
    axis = f"x=range:{points}"
    return {
        "a process for each point": [*ours, "experiment.py:trivial", axis, "--parallel", "2"],
        "with setup_fields": [*ours, "experiment.py:Warm", axis, "--parallel", "2"],
        "Hydra, basic launcher": [python, "app.py", "-m", f"x=range({points})"],
        "joblib, loky": [python, "loky.py", str(points)],
    }


def seconds(command: list[str], folder: Path) -> float:
    environment = {**os.environ, "ML_EXPERIMENTS_INDEX_DIR": str(folder / "index")}
    environment.pop("ML_EXPERIMENTS_RUNS_DIR", None)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print(f"{'what':<26} {'s':>8} {'ms a point':>11}   {given.points} points")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for what, command in commands_in(folder, given.points).items():
            took = statistics.median(seconds(command, folder) for _ in range(given.repeat))
            print(f"{what:<26} {took:>8.2f} {took / given.points * 1e3:>11.2f}")


if __name__ == "__main__":
    main()
