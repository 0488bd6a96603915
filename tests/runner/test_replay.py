"""Old runs, run again with their own code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_experiments import LocalBackend, ModalBackend, Observer, RunResult, run_experiment
from ml_experiments.errors import Error
from ml_experiments.runner.replay import CODE_FOLDER, replay_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.labels import edit_labels
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.reports.diff import diff_runs
from modal_emulator import Emulator
from tests.support.git_repo import commit, make_repo

pytestmark = pytest.mark.slow

TRAIN = """
import random
from pathlib import Path
from {package}factor import FACTOR
def train(lr=0.1):
    return {{"loss": lr * FACTOR, "drawn": random.random(), "file": str(Path(__file__))}}
"""
CRASH = "def crash(n=1):\n    raise ValueError('a bad batch')\n"


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "train.py": TRAIN.format(package=""),
        "factor.py": "FACTOR = 1\n",
        "pkg/__init__.py": "",
        "pkg/train.py": TRAIN.format(package="pkg."),
        "pkg/factor.py": "FACTOR = 1\n",
        "crash.py": CRASH,
        ".gitignore": "runs\nignored.py\n",
    }
    folder = make_repo(tmp_path / "repo", files)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(repo: Path) -> Callable[..., RunResult]:
    def call(experiment: str, **config: object) -> RunResult:
        runs_dir = repo / "runs"
        return run_experiment(experiment, config, runs_dir=runs_dir, observer=Observer())

    return call


def replayed(old: RunResult, *, uses_current_code: bool = False) -> RunResult:
    assert old.run_dir is not None
    with LocalBackend() as backend:
        return replay_run(
            RunFolder(old.run_dir),
            backend=backend,
            observer=Observer(),
            uses_current_code=uses_current_code,
        ).result()


@pytest.mark.parametrize("experiment", ["train.train", "train.py:train", "pkg.train:train"])
def test_a_run_is_repeated_with_the_code_that_it_ran_with(
    repo: Path, run: Callable[..., RunResult], experiment: str
) -> None:
    for file in ("factor.py", "pkg/factor.py"):
        (repo / file).write_text("FACTOR = 2\n")  # not committed
    old = run(experiment, lr=0.5)
    assert old.results["loss"] == 1.0
    commit(repo, {"factor.py": "FACTOR = 3\n", "pkg/factor.py": "FACTOR = 3\n"})
    new = replayed(old)
    assert (new.results["loss"], new.results["drawn"]) == (1.0, old.results["drawn"])
    assert Path(new.results["file"]).is_relative_to(repo / "runs" / CODE_FOLDER)
    assert new.run_id != old.run_id
    again = replayed(new)  # a run that was repeated can be repeated
    assert again.results == new.results
    assert old.run_dir is not None
    assert new.run_dir is not None
    found = diff_runs(RunFolder(old.run_dir), RunFolder(new.run_dir))
    assert (found.inputs, found.patch) == ((), "")
    assert [difference.path for difference in found.outcomes] == ["results.file"]
    current = replayed(old, uses_current_code=True)
    assert current.results["loss"] == 1.5
    assert (repo / "factor.py").read_text() == "FACTOR = 3\n"


def test_a_replay_has_the_labels_of_its_run_and_says_whose_it_is(
    run: Callable[..., RunResult],
) -> None:
    old = run("train.train")
    assert old.run_dir is not None
    edit_labels(RunFolder(old.run_dir), lambda labels: type(labels)("best", {"a": "b"}, "why"))
    new = replayed(old)
    assert new.run_dir is not None
    spec = RunFolder(new.run_dir).read_spec()
    assert (spec.name, spec.tags) == (None, {"a": "b", "replay_of": old.run_id})
    assert RunRegistry(old.run_dir.parent).find("best").path.name == old.run_id


def test_a_run_that_failed_fails_again(run: Callable[..., RunResult]) -> None:
    new = replayed(run("crash.crash"))
    assert new.error is not None
    assert new.error.message == "a bad batch"


def test_code_that_git_did_not_track_is_named(repo: Path, run: Callable[..., RunResult]) -> None:
    (repo / "ignored.py").write_text("def train(n=1): return n\n")
    old = run("ignored.train")
    with pytest.raises(Error, match=r"git did not track its file.*--current-code"):
        replayed(old)
    assert replayed(old, uses_current_code=True).results == 1


def test_code_that_is_gone_is_named(repo: Path, run: Callable[..., RunResult]) -> None:
    old = run("train.train")
    assert old.run_dir is not None
    manifest = old.run_dir / "manifest.json"
    record = json.loads(manifest.read_text())
    record["code"]["commit"] = "0" * 40
    manifest.write_text(json.dumps(record))
    with pytest.raises(Error, match=r"can't be brought back.*--current-code"):
        replayed(old)


def test_an_experiment_of_an_installed_package_is_imported_from_there(
    repo: Path, run: Callable[..., RunResult], tmp_path: Path
) -> None:
    old = run("json.dumps", obj="a")
    assert old.results == '"a"'
    assert replayed(old).results == old.results


def test_without_a_repository_the_code_is_that_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "job.py").write_text("def job(n=1): return n\n")
    old = run_experiment("job.job", {"n": 4}, runs_dir=folder / "runs", observer=Observer())
    (folder / "job.py").write_text("def job(n=1): return n * 10\n")
    assert replayed(old).results == 40
    assert sys.path.count(str(folder)) == 0


def test_a_run_on_modal_is_repeated_there_with_the_code_that_it_ran_with(
    modal_emulator: Emulator, repo: Path
) -> None:
    (repo / "factor.py").write_text("FACTOR = 2\n")  # not committed
    with ModalBackend() as backend:
        old = run_experiment(
            "train.train",
            {"lr": 0.5},
            backend=backend,
            gpu="t4",
            runs_dir=repo / "runs",
            observer=Observer(),
        )
        commit(repo, {"factor.py": "FACTOR = 3\n"})
        assert old.run_dir is not None
        new = replay_run(RunFolder(old.run_dir), backend=backend, observer=Observer()).result()
    assert (new.results["loss"], new.results["drawn"]) == (1.0, old.results["drawn"]), new.error
    assert new.run_dir is not None
    found = diff_runs(RunFolder(old.run_dir), RunFolder(new.run_dir))
    assert (found.inputs, found.outcomes, found.patch) == ((), (), "")
    spec = RunFolder(new.run_dir).read_spec()
    assert (spec.backend, spec.gpu, spec.tags) == ("modal", "t4", {"replay_of": old.run_id})
