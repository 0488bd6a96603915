"""Experiments of a notebook or an interactive session: they run, are checked, and resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modal_emulator.emulator import Emulator

pytestmark = pytest.mark.slow

CELL = """
import helper_of_mine
from ml_experiments import Experiment, ExperimentConfig, current_run, run_experiment

SCALE = 3

class TrainConfig(ExperimentConfig):
    lr: float = 0.5

class Train(Experiment[TrainConfig]):
    def setup(self):
        self.base = helper_of_mine.VALUE
    def run(self):
        import math
        return scaled(self.config.lr) + self.base

def scaled(x):
    return x * SCALE

def train(n: int = 2):
    return scaled(n)

def fails_once():
    first = current_run().checkpoint_dir / "first"
    if first.exists():
        return scaled(2)
    first.touch()
    raise ValueError("the first time")
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A folder with a module that the cell imports."""
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 4\n")
    return tmp_path


def run_cell(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code as an interactive session does: no file holds it."""
    return subprocess.run(
        [sys.executable, "-"],
        input=f"{CELL}\n{code}",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("backend", ["local", "debug"])
def test_what_a_cell_defines_runs_with_what_it_uses(backend: str, notebook: Path) -> None:
    code = (
        f"backend = {backend!r}\n"
        "print(run_experiment(Train, {'lr': 2}, backend=backend).raise_for_error().results)\n"
        "print(run_experiment(Train, TrainConfig(lr=3), backend=backend).results)\n"
        "print(run_experiment(train, {'n': 5}, backend=backend).results)\n"
    )
    done = run_cell(notebook, code)
    assert done.stdout.split() == ["10.0", "13.0", "15"], done.stderr


def test_a_mistake_in_the_config_is_found_before_it_runs(notebook: Path, runs_dir: Path) -> None:
    done = run_cell(notebook, "run_experiment(Train, {'lrr': 2})")
    assert "did you mean 'lr'" in done.stderr
    assert list(runs_dir.iterdir()) == []


def test_a_run_of_a_notebook_resumes_from_its_folder(notebook: Path, runs_dir: Path) -> None:
    done = run_cell(notebook, "print(run_experiment(fails_once).error.message)")
    assert done.stdout.strip() == "the first time", done.stderr
    [folder] = runs_dir.iterdir()
    moved = folder.rename(runs_dir.parent / f"{runs_dir.name}-moved-{folder.name}").rename(folder)
    assert (moved / "notebook_experiment.py").is_file()
    command = [sys.executable, "-m", "ml_experiments", "runs", "resume", "last"]
    resumed = subprocess.run(
        command, cwd=notebook, capture_output=True, text=True, timeout=120, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "6" in resumed.stdout


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("run_experiment(lambda: 1)", "has no name"),
        ("run_experiment(Train(TrainConfig()))", "pass the class itself: Train"),
        ("run_experiment(None)", "is of type NoneType, not a class"),
        (
            "big = bytes(100_000_001)\ndef uses():\n    return len(big)\nrun_experiment(uses)",
            "load them inside run()",
        ),
        (
            "import threading\nlock = threading.Lock()\n"
            "def uses():\n    return lock\nrun_experiment(uses)",
            "can't be sent to another process",
        ),
        (
            "import os\npassword = os.environ['DB_PASSWORD']\n"
            "def uses():\n    return len(password)\nrun_experiment(uses)",
            "holds a secret",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(code: str, says: str, notebook: Path) -> None:
    done = run_cell(notebook, code, DB_PASSWORD="planted-secret-value")
    assert says in done.stderr


def test_a_cell_runs_on_modal_with_the_modules_that_it_imports(
    modal_emulator: Emulator, notebook: Path
) -> None:
    code = (
        "result = run_experiment(Train, {'lr': 2}, backend='modal').raise_for_error()\n"
        "print('got', result.results)\n"
        "def needs():\n    import pytest\n    return 1\n"
        "run_experiment(needs, backend='modal')\n"
    )
    done = run_cell(notebook, code, **modal_emulator.environment)
    assert "got 10.0" in done.stdout, done.stderr
    assert "imports pytest" in done.stderr
    assert "--pip pytest" in done.stderr
