"""Sweeps as whole commands, start-up included: seconds a point, with what each way records.

Trivial points on this machine, against Hydra's basic launcher, whose points share one process, its
joblib launcher, and joblib's loky, which records nothing. Points on the local Modal server, against
a bare `map` of the same function. Pictures of two models, with and without shared set-ups.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra_environment import APP, python_with_hydra

BIN = Path(sys.executable).parent
SWEEP = (str(BIN / "ml-experiments"), "sweep")
EMULATOR = (str(BIN / "modal-emulator"), "run", "--")
AT_A_TIME = 4
EXPERIMENT = """
import time
from ml_experiments import Experiment, ExperimentConfig


def trivial(x: int = 1):
    return x + 1


def nap(x: int = 1, seconds: float = 0.5):
    time.sleep(seconds)  # as for a GPU: the processor is free
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
BARE_MAP = """
import sys
import modal

app = modal.App("bare")


@app.function(gpu="T4", max_containers=int(sys.argv[2]), serialized=True)
def nap(x):
    import time
    time.sleep(0.5)
    return x + 1


with app.run():
    print(sum(nap.map(range(int(sys.argv[1])))))
"""
PICTURES = """
from ml_experiments.tasks.text_to_image import TextToImageExperiment


class Apart(TextToImageExperiment):
    setup_fields = None
"""


def trivial_points(folder: Path, points: int) -> dict[str, list[str]]:
    """Return what is compared on this machine; commands run in the folder."""
    (folder / "app.py").write_text(APP)
    (folder / "loky.py").write_text(LOKY)
    python, axis = python_with_hydra(), f"x=range:{points}"
    hydra = [python, "app.py", "-m", f"x=range({points})"]
    return {
        "a process for each point": [*SWEEP, "experiment.py:trivial", axis, "--parallel", "2"],
        "with setup_fields": [*SWEEP, "experiment.py:Warm", axis, "--parallel", "2"],
        "Hydra, basic launcher": hydra,
        "Hydra, joblib launcher": [*hydra, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        "joblib, loky": [python, "loky.py", str(points)],
    }


def modal_points(folder: Path, points: int) -> dict[str, list[str]]:
    """Return what is compared on the local Modal server, which each command starts."""
    (folder / "bare.py").write_text(BARE_MAP)
    at_a_time = str(AT_A_TIME)
    ours = ["experiment.py:nap", f"x=range:{points}", "--gpu", "t4", "--parallel", at_a_time]
    return {
        "bare map": [*EMULATOR, sys.executable, "bare.py", str(points), at_a_time],
        "ours, on the local server": [*EMULATOR, *SWEEP, *ours],
    }


def pictures(folder: Path, points: int) -> dict[str, list[str]]:
    """Return sweeps over two models with and without shared set-ups."""
    from ml_experiments.tasks.tiny_digits import model_dir

    (folder / "pictures.py").write_text(PICTURES)
    models = [folder / "first", folder / "second"]
    for model in models:
        if not model.exists():
            shutil.copytree(model_dir(), model)
    (folder / "prompts.txt").write_text(
        "".join(f"a red handwritten seven, number {n}\n" for n in range(points // 2))
    )
    axes = ["prompt=file:prompts.txt", f"model_name={models[0]},{models[1]}", "num_images=1"]
    shared = "ml_experiments.tasks.text_to_image.TextToImageExperiment"
    return {
        "pictures, shared set-ups": [*SWEEP, shared, *axes, "--parallel", "2"],
        "pictures, a set-up each": [*SWEEP, "pictures.Apart", *axes, "--parallel", "2"],
    }


def seconds(command: list[str], folder: Path) -> float:
    environment = {**os.environ, "ML_EXPERIMENTS_INDEX_DIR": str(folder / "index")}
    environment |= {"MODAL_EMULATOR_IMAGES": "record", "OMP_NUM_THREADS": "1"}
    environment.pop("ML_EXPERIMENTS_RUNS_DIR", None)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=500, help="trivial points")
    parser.add_argument("--few", type=int, default=40, help="points on Modal, and of pictures")
    parser.add_argument("--many", type=int, default=200, help="points on Modal in a longer sweep")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for number, (commands_in, points) in enumerate(
            (
                (trivial_points, given.points),
                (modal_points, given.few),
                (modal_points, given.many),
                (pictures, given.few),
            )
        ):
            folder = Path(scratch, str(number))
            folder.mkdir()
            (folder / "experiment.py").write_text(EXPERIMENT)
            first: float | None = None
            columns = f"{'what':<26} {'s':>8} {'ms a point':>11} {'times the first':>16}"
            print(columns, f"  {points} points")
            for what, command in commands_in(folder, points).items():
                took = statistics.median(seconds(command, folder) for _ in range(given.repeat))
                first = first or took
                each_ms = took / points * 1e3
                print(f"{what:<26} {took:>8.2f} {each_ms:>11.2f} {took / first:>16.2f}")
            print()


if __name__ == "__main__":
    main()
