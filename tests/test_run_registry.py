"""Run folders listed and found, whatever state the index or a folder is in."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import pytest

from ml_experiments import Error, LocalBackend, run_experiment
from ml_experiments.errors import RunNotFoundError
from ml_experiments.run_folder import RunFolder, this_process
from ml_experiments.run_registry import INDEX_NAME, RunRegistry, RunRow
from ml_experiments.runner import resume_run
from tests.support.experiments import Ends, Plain


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    with LocalBackend() as backend:
        run_experiment(Plain, {}, backend=backend, runs_dir=folder, name="first")
        run_experiment(Ends, {"how": "value_error"}, backend=backend, runs_dir=folder)
        run_experiment(Plain, {"x": 1}, backend=backend, runs_dir=folder)
    return folder


@pytest.fixture
def runs(three_runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three_runs, tmp_path / "copy"))


def by_status(rows: list[RunRow]) -> list[str | None]:
    return sorted(str(row.status) for row in rows)


def test_rows_tell_what_ran_and_how_it_ended(runs: Path) -> None:
    rows = RunRegistry(runs).rows()
    assert by_status(rows) == ["error", "success", "success"]
    assert [row.run_id for row in rows] == sorted((row.run_id for row in rows), reverse=True)
    (failed,) = (row for row in rows if row.status == "error")
    assert failed.error == "experiment: the loss is not a number"
    assert {row.name for row in rows} == {"first", None}
    assert all(row.seconds is not None for row in rows)


@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated", "other schema"])
def test_a_missing_or_broken_index_is_rebuilt(runs: Path, damage: str) -> None:
    before = RunRegistry(runs).rows()
    index = runs / INDEX_NAME
    if damage == "missing":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(b"not a database" * 1000)
    elif damage == "truncated":
        index.write_bytes(index.read_bytes()[:5000])
    else:
        with sqlite3.connect(index) as connection:
            connection.execute("DROP TABLE runs")
            connection.execute("CREATE TABLE runs (something_else TEXT)")
            connection.execute("PRAGMA user_version = 99")
    assert RunRegistry(runs).rows() == before


def test_a_new_changed_or_removed_folder_is_noticed(runs: Path) -> None:
    registry = RunRegistry(runs)
    newest = registry.rows()[0]
    result_file = runs / newest.run_id / "result.json"
    changed = {**json.loads(result_file.read_text()), "status": "cancelled"}
    result_file.write_text(json.dumps(changed))
    assert registry.rows()[0].status == "cancelled"
    shutil.copytree(runs / newest.run_id, runs / "99990101-000000-abcdef")
    assert registry.rows()[0].run_id == "99990101-000000-abcdef"
    shutil.rmtree(runs / "99990101-000000-abcdef")
    shutil.rmtree(runs / newest.run_id)
    assert len(registry.rows()) == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", '{"status": "success"}'),
        ("result.json", "\x00\x01"),
        ("spec.json", ""),
        ("spec.json", "{}"),
        ("spec.json", None),
    ],
)
def test_a_corrupt_folder_is_reported_and_hides_nothing_else(
    runs: Path, file: str, content: str | None
) -> None:
    broken = RunRegistry(runs).rows()[0].run_id
    if content is None:
        (runs / broken / file).unlink()
    else:
        (runs / broken / file).write_text(content)
    rows = RunRegistry(runs).rows()
    assert len(rows) == 3
    problem = rows[0].problem
    assert problem is not None
    assert file in problem
    assert [row.problem for row in rows[1:]] == [None, None]


def test_a_run_is_found_by_id_by_its_beginning_and_as_last(runs: Path) -> None:
    registry = RunRegistry(runs)
    newest, middle, _ = (row.run_id for row in registry.rows())
    assert registry.find(middle).path.name == middle
    assert registry.find(middle[:-1]).path.name == middle
    assert registry.find("last").path.name == newest


@pytest.mark.parametrize("reference", ["nothing-like-it", "", "../copy", "/"])
def test_a_reference_that_matches_nothing_is_an_error(runs: Path, reference: str) -> None:
    with pytest.raises(RunNotFoundError, match="runs list"):
        RunRegistry(runs).find(reference)


def test_an_ambiguous_beginning_is_an_error(runs: Path) -> None:
    with pytest.raises(RunNotFoundError, match="matches 3 runs"):
        RunRegistry(runs).find("2")


def test_no_runs_folder_means_no_runs(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path / "nothing")
    assert registry.rows() == []
    with pytest.raises(RunNotFoundError, match="there are no runs"):
        registry.find("last")
    assert not (tmp_path / "nothing").exists()


def test_a_run_whose_process_is_gone_is_an_error_not_running(runs: Path) -> None:
    registry = RunRegistry(runs)
    folder = registry.find("last")
    folder.result_file.unlink()
    row = registry.rows()[0]
    assert row.status == "error"
    assert row.error is not None
    assert "ended without leaving a result" in row.error
    manifest = folder.read_manifest()
    (folder.path / "manifest.json").write_text(json.dumps({**manifest, "process": this_process()}))
    assert registry.rows()[0].status == "running"


def test_a_run_on_another_machine_is_not_taken_for_dead(runs: Path) -> None:
    folder = RunRegistry(runs).find("last")
    folder.result_file.unlink()
    manifest = folder.read_manifest()
    manifest["process"]["hostname"] = "elsewhere"
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    assert folder.outcome().status == "running"


def test_a_symlink_among_the_runs_is_not_followed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (runs / "link").symlink_to(tmp_path / "outside")
    assert len(RunRegistry(runs).rows()) == 3


def test_a_run_that_succeeded_is_not_resumed(runs: Path) -> None:
    with LocalBackend() as backend, pytest.raises(Error, match="nothing to resume"):
        resume_run(RunFolder(runs / RunRegistry(runs).rows()[0].run_id), backend=backend)


def _count_rows(folder: Path) -> int:
    return len(RunRegistry(folder).rows())


def test_several_processes_list_at_once(runs: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        assert pool.map(_count_rows, [runs] * 8) == [3] * 8
