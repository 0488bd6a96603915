"""`reuse=True`: an earlier run is returned if, and only if, its result would come again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import (
    LocalBackend,
    ModalBackend,
    RunResult,
    run_experiment,
    submit_experiment,
    sweep,
)
from ml_experiments.backends import base
from ml_experiments.cache import layout
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.resume import resume_run
from ml_experiments.runner.reuse import finding
from ml_experiments.runner.reuse.finding import find_earlier
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from ml_experiments.runner.sweeps.sweep import resume_sweep
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.fingerprint import hash_of
from modal_emulator import Emulator
from tests.support.command import call
from tests.support.hub_cache import commit_of, write_repo
from tests.support.modal_runs import Recorder

pytestmark = pytest.mark.slow

SOURCE = {
    "train.py": (
        "from pathlib import Path\n"
        "from ml_experiments import current_run\n"
        "import parts.factor\n"
        "def train(lr=0.1, steps=3, model_name='', prompts='', token=''):\n"
        "    with open('calls' + '.txt', 'a') as file:  # no data file\n"
        "        file.write('call\\n')\n"
        "    (current_run().output_dir / 'out.txt').write_text('weights')\n"
        "    return lr * parts.factor.FACTOR\n"
        "def other(lr=0.1): return 0\n"
    ),
    "parts/__init__.py": "",
    "parts/factor.py": "from pathlib import Path\nFACTOR = len('table.txt')\n",
    "parts/table.txt": "1 2 3",
    "unrelated.py": "x = 1\n",
}


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with LocalBackend(max_workers=2) as opened:
        yield opened


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in SOURCE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Run = Callable[..., RunResult]


@pytest.fixture
def run(project: Path, backend: LocalBackend) -> Run:
    def call(config: dict[str, Any] | None = None, **options: Any) -> RunResult:
        options = {"observer": Recorder(), "reuse": True, **options}
        return run_experiment("train.train", config or {}, backend=backend, **options)

    return call


@pytest.fixture
def explain(project: Path, backend: LocalBackend, runs_dir: Path) -> Callable[..., list[str]]:
    """Return what differs from the nearest earlier run."""

    def call(config: dict[str, Any] | None = None, **options: Any) -> list[str]:
        prepared = prepare_run("train.train", config or {}, backend=backend, **options)
        search = find_earlier(prepared, backend, runs_dir)
        assert search.found is None, search
        return [difference.what for difference in search.differences]

    return call


def calls(project: Path) -> int:
    return len((project / "calls.txt").read_text().splitlines())


def test_a_finished_run_is_returned_for_nothing_and_says_so(project: Path, run: Run) -> None:
    first, recorder = run({"lr": 0.2}, seed=1), Recorder()
    again = run({"lr": 0.2}, seed=1, observer=recorder)
    assert (first.is_reused, again.is_reused) == (False, True)
    assert (again.run_id, again.results) == (first.run_id, first.results)
    assert calls(project) == 1
    [notice] = recorder.notices
    assert notice.startswith(f"reused, for $0: run {first.run_id}")
    assert recorder.events == ["finished: success"]
    assert run({"lr": 0.2}, seed=1, reuse=False).run_id != first.run_id


def test_without_a_seed_any_run_will_do_and_with_one_only_its_own(
    run: Run, explain: Callable[..., list[str]]
) -> None:
    drawn = run()
    assert run().run_id == drawn.run_id
    assert explain(seed=5) == ["seed"]
    with_seed = run(seed=5)
    assert with_seed.run_id != drawn.run_id
    assert run(seed=5).run_id == with_seed.run_id
    assert run().run_id == with_seed.run_id  # the newest


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("train.py", "source of train"),
        ("parts/factor.py", "source of parts.factor"),
        ("parts/table.txt", "file table.txt"),
        ("unrelated.py", None),
    ],
)
def test_an_edit_of_what_is_imported_is_another_run(
    project: Path, run: Run, explain: Callable[..., list[str]], file: str, named: str | None
) -> None:
    first = run()
    kept = (project / file).read_text()
    (project / file).write_text(kept + "\n# edited\n")
    if named is None:
        assert run().run_id == first.run_id
        return
    assert explain() == [named]
    (project / file).write_text(kept)  # as it was: the run is found again
    assert run().run_id == first.run_id


def test_a_run_in_ranks_is_another_one(run: Run, explain: Callable[..., list[str]]) -> None:
    pytest.importorskip("torch")
    run()
    assert explain(launch="torchrun", nproc_per_node=2) == ["launch", "nproc_per_node"]


def test_config_and_its_files_are_compared(
    project: Path, run: Run, explain: Callable[..., list[str]]
) -> None:
    (project / "prompts.txt").write_text("a red seven")
    config = {"prompts": "prompts.txt", "lr": 0.5}
    first = run(config)
    assert run(config).run_id == first.run_id
    assert explain({**config, "lr": 0.25, "steps": 4}) == ["config.lr", "config.steps"]
    (project / "prompts.txt").write_text("a blue seven")
    assert explain(config) == ["file config.prompts"]


def test_a_secret_of_the_config_is_no_part_of_it(run: Run) -> None:
    first = run({"token": "hunter2hunter2"})
    assert run({"token": "another-secret"}).run_id == first.run_id


def test_packages_are_compared_by_name(
    run: Run, explain: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    versions = {**finding.package_versions(), "numpy": "99.0"}
    monkeypatch.setattr(base, "hash_of_packages", lambda: hash_of(versions))
    monkeypatch.setattr(finding, "package_versions", lambda: versions)
    assert explain() == ["package numpy"]


def test_another_experiment_of_the_module_is_another(
    project: Path, run: Run, backend: LocalBackend
) -> None:
    run()
    result = run_experiment("train.other", {}, backend=backend, reuse=True, observer=Recorder())
    assert result.results == 0


def test_a_run_that_failed_or_lost_an_artifact_does_not_count(
    run: Run, explain: Callable[..., list[str]]
) -> None:
    first = run()
    assert first.run_dir is not None
    (first.run_dir / "artifacts/out.txt").unlink()
    assert explain() == ["artifacts/out.txt"]
    (first.run_dir / "artifacts/out.txt").write_text("wEights")
    assert explain() == ["artifacts/out.txt"]
    record = json.loads((first.run_dir / "result.json").read_text())
    (first.run_dir / "artifacts/out.txt").write_text("weights")
    for status in ("error", "cancelled"):
        (first.run_dir / "result.json").write_text(json.dumps({**record, "status": status}))
        assert explain() == []


def test_a_run_that_went_on_with_another_source_does_not_count(
    project: Path, backend: LocalBackend, explain: Callable[..., list[str]]
) -> None:
    source = project / "train.py"
    good = source.read_text()
    source.write_text(good.replace("    return lr", "    raise ValueError\n    return lr"))
    failed = run_experiment("train.train", {}, backend=backend, observer=Recorder())
    source.write_text(good)
    assert failed.run_dir is not None
    folder = RunFolder(failed.run_dir)
    assert folder.read_manifest().fingerprint is not None
    resumed = resume_run(folder, backend=backend, observer=Recorder())
    assert resumed.result().status == "success"
    assert folder.read_manifest().fingerprint is None
    assert explain() == []


def test_a_run_whose_source_was_changed_while_it_waited_does_not_count(
    project: Path, tmp_path: Path, explain: Callable[..., list[str]]
) -> None:
    (project / "waits.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def waits():\n    while not Path('go').exists():\n        time.sleep(0.01)\n"
    )
    with LocalBackend(max_workers=1) as backend:
        waiting = submit_experiment("waits.waits", {}, backend=backend, observer=Recorder())
        queued = submit_experiment("train.train", {}, backend=backend, observer=Recorder())
        (project / "parts/factor.py").write_text("FACTOR = 3\n")
        (project / "go").touch()
        assert queued.result().status == waiting.result().status == "success"
    assert queued.folder.read_manifest().fingerprint is None
    assert waiting.folder.read_manifest().fingerprint is not None
    assert explain() == []


def test_a_model_counts_with_the_revision_that_was_loaded(
    run: Run,
    explain: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = commit_of("old"), commit_of("new")
    files = {"config.json": b"{}"}
    hub = tmp_path / "cache" / "hub"
    monkeypatch.setattr(layout, "_folders_of_huggingface", lambda: (hub.parent, hub))
    monkeypatch.setattr(base, "this_machine", lambda: hub)
    write_repo(hub, "org/tiny", {old: files})
    first = run({"model_name": "org/tiny"})
    assert first.run_dir is not None
    assert explain({"model_name": "org/tiny"}) == ["model org/tiny"]  # the run loaded none
    manifest = first.run_dir / "manifest.json"
    used = {"repo_id": "org/tiny", "kind": "model", "revision": old, "bytes": 2, "hit": True}
    record = {**json.loads(manifest.read_text()), "cached_models": [used]}
    manifest.write_text(json.dumps(record))
    assert run({"model_name": "org/tiny"}).run_id == first.run_id
    write_repo(hub, "org/tiny", {new: files})
    assert explain({"model_name": "org/tiny"}) == ["model org/tiny"]
    shutil.rmtree(hub)
    assert explain({"model_name": "org/tiny"}) == ["model org/tiny"]


def test_points_of_a_sweep_take_earlier_runs(project: Path, run: Run, runs_dir: Path) -> None:
    first = run({"lr": 0.25})
    options: dict[str, Any] = {"reuse": True, "parallel": 2, "minimize": "results"}
    points = list(sweep("train.train", {"lr": [0.25, 0.5]}, **options))
    assert [p.result.is_reused for p in sorted(points, key=lambda p: p.number)] == [True, False]
    assert calls(project) == 2
    folder = find_sweep(runs_dir, "last")
    shown = recorded_points(folder)
    assert [(p.values["lr"], p.result.is_reused, p.cost_usd) for p in shown] == [
        (0.25, True, 0.0),
        (0.5, False, 0.0),
    ]
    assert shown[0].result.run_id == first.run_id
    assert list(resume_sweep(folder, observer=Recorder())) == []
    sampled = list(sweep("train.train", {"lr": [0.25, 0.5]}, trials=2, sampler="qmc", **options))
    assert all(point.result.is_reused for point in sampled)
    assert list(resume_sweep(find_sweep(runs_dir, "last"), observer=Recorder())) == []
    assert calls(project) == 2


@pytest.mark.slow
def test_the_command_says_what_it_reuses_and_explains_what_differs(project: Path) -> None:
    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        return call("run", "train.train", *arguments)

    none = asked("--explain-reuse")
    assert (none.returncode, none.stdout.startswith("there is no earlier run")) == (1, True)
    first = json.loads(asked("lr=0.25", "--seed", "1", "--json").stdout)
    again = asked("lr=0.25", "--reuse")
    assert again.returncode == 0, again.stderr
    assert f"reused, for $0: run {first['run_id']}" in again.stderr
    assert "nothing was started, and this cost $0" in again.stdout
    record = json.loads(asked("lr=0.25", "--reuse", "--json").stdout)
    assert (record["run_id"], record["is_reused"]) == (first["run_id"], True)
    detached = json.loads(asked("lr=0.25", "--reuse", "--detach", "--json").stdout)
    assert (detached["run_id"], detached["is_new"]) == (first["run_id"], False)
    assert asked("lr=0.25", "--explain-reuse").returncode == 0
    explained = asked("lr=0.5", "--seed", "2", "--explain-reuse", "--json")
    assert explained.returncode == 1
    assert json.loads(explained.stdout) == {
        "run_id": None,
        "nearest": first["run_id"],
        "differences": [
            {"what": "config.lr", "earlier": "0.25", "now": "0.5"},
            {"what": "seed", "earlier": "1", "now": "2"},
        ],
    }
    assert calls(project) == 1
    missed = asked("lr=0.5", "--reuse")
    assert f"the nearest one, {first['run_id']}, differs in config.lr" in missed.stderr
    assert calls(project) == 2


@pytest.mark.slow
def test_a_run_on_modal_depends_on_the_same_source(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    fingerprints = []
    for backend in (LocalBackend(), ModalBackend()):
        project = tmp_path / backend.name  # what is known of one folder is not read again
        project.mkdir()
        (project / "mine.py").write_text("import near_by\ndef run(x=1): return open('data.txt')\n")
        (project / "near_by.py").write_text("from ml_experiments import current_run\n")
        (project / "data.txt").touch()
        with backend:
            fingerprints.append(prepare_run(f"{project}/mine.py:run", backend=backend).fingerprint)
    here, there = fingerprints
    assert here is not None
    assert there is not None
    assert sorted(here.source) == ["mine", "near_by"]
    assert (here.source, here.data) == (there.source, there.data)
