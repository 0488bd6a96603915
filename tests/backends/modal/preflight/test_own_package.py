"""What of this package a container gets, and that it is enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments import run_experiment
from ml_experiments.backends.modal.preflight import own_package
from ml_experiments.backends.modal.preflight.import_graph import walk_imports
from ml_experiments.backends.modal.preflight.own_package import (
    PACKAGE,
    RUN_ROOTS,
    files_for_run,
    package_files,
)
from ml_experiments.backends.modal.preflight.staging import stage_this_package
from ml_experiments.runs.result import ErrorKind
from modal_emulator import Emulator

pytestmark = pytest.mark.slow

CACHE_ROOTS = ("backends.modal.container.cache_operations",)
APP_ROOTS = ("core.modal_runner", "execution", "tasks")


def tops(files: frozenset[Path]) -> set[str]:
    return {file.parts[0] for file in files}


def files_of(source: str, folder: Path) -> frozenset[Path]:
    """Return what the run of an experiment with this source gets."""
    (folder / "exp.py").write_text(source)
    return files_for_run(walk_imports("exp", [folder]))


def run_in_copy(
    folder: Path, files: frozenset[Path], code: str
) -> subprocess.CompletedProcess[str]:
    """Run Python where nothing of this package but some files is importable."""
    stage_this_package(folder / "ml_experiments", files)
    # no finder of an editable install, which would add what the copy lacks
    start = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path.insert(0, {str(folder)!r})
"""
    return subprocess.run(
        [sys.executable, "-P", "-c", start + code],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_gets_what_executes_it_and_no_more() -> None:
    files = package_files(*RUN_ROOTS)
    for absent in ("cli", "core", "runner", "tasks"):
        assert absent not in tops(files)
    modal = {file for file in files if file.parts[:2] == ("backends", "modal")}
    assert not any("preflight" in file.parts for file in modal)
    assert not any(file.parts[:2] == ("backends", "local") for file in files)
    whole = sum(file.stat().st_size for file in PACKAGE.rglob("*") if file.is_file())
    assert sum((PACKAGE / file).stat().st_size for file in files) < whole / 5


@pytest.mark.parametrize("roots", [RUN_ROOTS, CACHE_ROOTS, APP_ROOTS])
def test_each_module_that_is_sent_can_be_imported_where_nothing_else_is(
    tmp_path: Path, roots: tuple[str, ...]
) -> None:
    files = package_files(*roots)
    names = [
        ".".join(("ml_experiments", *file.with_suffix("").parts)).removesuffix(".__init__")
        for file in files
        if file.suffix == ".py" and file.parts[0] != "tasks"  # these need torch
    ]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    done = run_in_copy(tmp_path, files, code)
    assert done.returncode == 0, done.stderr


def test_public_names_that_need_nothing_else_work_there(tmp_path: Path) -> None:
    code = """
from ml_experiments import Experiment, ExperimentConfig, SoftTimeout, current_run, RunResult
import ml_experiments
try:
    ml_experiments.run_experiment
except ModuleNotFoundError as e:
    print(e.name)
"""
    done = run_in_copy(tmp_path, package_files(*RUN_ROOTS), code)
    assert (done.stdout, done.stderr) == ("ml_experiments.runner\n", "")


def test_a_public_name_that_an_experiment_imports_goes_along_with_what_it_needs(
    tmp_path: Path,
) -> None:
    files = files_of("from ml_experiments import Experiment, run_experiment", tmp_path)
    assert "runner" in tops(files)
    assert "tasks" not in tops(files)
    (tmp_path / "six.py").write_text("def six():\n    return 6\n")
    code = """
from ml_experiments import run_experiment
for backend in ("local", "debug"):
    print(run_experiment("six:six", backend=backend).results)
"""
    done = run_in_copy(tmp_path, files, f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert done.stdout == "6\n6\n", done.stderr


def test_a_ready_experiment_goes_along_with_its_data() -> None:
    files = files_for_run(walk_imports("ml_experiments.tasks.text_to_image"))
    assert Path("tasks/tiny_digits/model/model_index.json") in files
    assert Path("backends/modal/gpu_image/requirements-gpu.lock") not in files


def test_imports_for_type_checkers_send_nothing(tmp_path: Path) -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ml_experiments.runner.run"
    )
    assert files_of(source, tmp_path) == package_files(*RUN_ROOTS)


NESTED = """
from ml_experiments import run_experiment

def six():
    return 6

def outer():
    return run_experiment(six, backend="debug").results * 7
"""
ATTRIBUTE = """
import ml_experiments

def outer():
    return ml_experiments.run_experiment("nested:six")
"""


def test_an_experiment_may_run_others_in_its_container(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "nested.py").write_text(NESTED)
    result = run_experiment(f"{tmp_path}/nested.py:outer", backend="modal", gpu="t4")
    assert result.raise_for_error().results == 42


def test_what_was_not_sent_along_is_an_error_that_says_how_it_is(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "attribute.py").write_text(ATTRIBUTE)
    error = run_experiment(f"{tmp_path}/attribute.py:outer", backend="modal", gpu="t4").error
    assert error is not None
    assert error.kind is ErrorKind.IMPORT
    assert "from ml_experiments import run_experiment" in error.hint


def test_what_is_sent_is_looked_up_once_and_again_when_the_file_of_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_EXPERIMENTS_INDEX_DIR", str(tmp_path))
    walks = []
    walk = own_package.walk_own_package
    monkeypatch.setattr(own_package, "walk_own_package", lambda n: walks.append(n) or walk(n))

    def found() -> frozenset[Path]:
        package_files.cache_clear()  # as in another process
        return package_files(*CACHE_ROOTS)

    whole = found()
    assert (found(), len(walks)) == (whole, 1)
    [file] = tmp_path.iterdir()
    record = json.loads(file.read_text())
    elsewhere = {asked: ["../../secrets.txt"] for asked in record["answers"]}
    for content in (
        b"\0",
        json.dumps({**record, "answers": elsewhere}).encode(),
        json.dumps({**record, "answers": 7}).encode(),
        json.dumps({**record, "state": "another version's"}).encode(),
    ):
        file.write_bytes(content)
        count = len(walks)
        assert (found(), len(walks)) == (whole, count + 1)
    file.unlink()
    file.mkdir()  # nothing can be written there
    assert found() == whole
