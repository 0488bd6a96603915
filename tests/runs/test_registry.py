"""Run folders listed and found, whatever state a folder is in."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments import Error, LocalBackend, run_experiment
from ml_experiments.errors import RunNotFoundError
from ml_experiments.runner.resume import resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.registry import RunRegistry, RunRow
from ml_experiments.runs.spec import new_run_id
from tests.support.experiments import Ends, Plain
from tests.support.run_folders import write_run


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


def list_in_a_process(runs: Path, before: str = "", program: tuple[str, ...] = ()) -> list[str]:
    """Return the ids that `runs list --json` prints in a process that does something first."""
    code = f"{before}\nfrom ml_experiments.cli.main import main\nmain(['runs', 'list', '--json'])"
    done = subprocess.run(
        [*program, sys.executable, "-c", code],
        env={**os.environ, "ML_EXPERIMENTS_RUNS_DIR": str(runs)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [row["run_id"] for row in json.loads(done.stdout)]


def test_runs_are_listed_when_nothing_can_be_written(runs: Path) -> None:
    ids = [row.run_id for row in RunRegistry(runs).rows()]
    # as on a full disk, every write to a file fails
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    assert list_in_a_process(runs, limit) == ids


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="mounts read-only in a user namespace",
)
def test_runs_in_a_read_only_folder_are_listed(runs: Path) -> None:
    ids = [row.run_id for row in RunRegistry(runs).rows()]
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    assert list_in_a_process(runs, program=("unshare", "-rm", "sh", "-c", mount, str(runs))) == ids


def test_folders_of_other_tools_are_no_runs(runs: Path) -> None:
    registry = RunRegistry(runs)
    rows = registry.rows()
    for name in (
        "Nov23_14-15-02_host",
        "zzz",
        "99999999",
        b"\xff".decode(errors="surrogateescape"),
    ):
        (runs / name).mkdir()
        (runs / name / "events.out").touch()
    assert registry.rows() == rows
    assert registry.find("last").path.name == rows[0].run_id
    with pytest.raises(RunNotFoundError, match="runs list"):
        registry.find("Nov23")


def test_a_folder_with_a_spec_is_a_run_whatever_its_name(runs: Path) -> None:
    registry = RunRegistry(runs)
    ids = [row.run_id for row in registry.rows()]
    shutil.copytree(runs / ids[-1], runs / "the best one")
    # it stands where its time puts it
    assert [row.run_id for row in registry.rows()] == [*ids[:-1], "the best one", ids[-1]]
    assert registry.find("the best").path.name == "the best one"
    assert registry.find("last").path.name == ids[0]


def test_a_folder_with_the_name_of_a_run_but_no_spec_is_unreadable(runs: Path) -> None:
    (runs / "99990101-000000-000abcd").mkdir()
    row = RunRegistry(runs).rows()[0]
    assert row.run_id == "99990101-000000-000abcd"
    assert "spec.json is missing" in str(row.problem)


def test_every_run_id_has_the_form_that_is_looked_for(tmp_path: Path) -> None:
    ids = {new_run_id() for _ in range(50)}
    for run_id in ids:
        (tmp_path / run_id).mkdir()
    assert {row.run_id for row in RunRegistry(tmp_path).rows()} == ids


def test_a_new_changed_or_removed_folder_is_noticed(runs: Path) -> None:
    registry = RunRegistry(runs)
    newest = registry.rows()[0]
    result_file = runs / newest.run_id / "result.json"
    changed = {**json.loads(result_file.read_text()), "status": "cancelled"}
    result_file.write_text(json.dumps(changed))
    assert registry.rows()[0].status == "cancelled"
    shutil.copytree(runs / newest.run_id, runs / "99990101-000000-000abcd")
    assert registry.rows()[0].run_id == "99990101-000000-000abcd"
    shutil.rmtree(runs / "99990101-000000-000abcd")
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


def test_a_run_is_found_by_its_name_unless_another_has_it_too(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "base", 'it\'s "best"', "base*")):
        write_run(tmp_path, f"20260101-000000-000000{number}", name=name)
    registry = RunRegistry(tmp_path)
    assert registry.find('it\'s "best"').path.name.endswith("2")
    assert registry.find("base*").path.name.endswith("3")  # a name, not a pattern
    with pytest.raises(RunNotFoundError, match="several runs are named 'base', among them 2026"):
        registry.find("base")


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
    manifest = dataclasses.replace(folder.read_manifest(), process=this_process())
    (folder.path / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    assert registry.rows()[0].status == "running"


def test_a_run_on_another_machine_is_not_taken_for_dead(runs: Path) -> None:
    folder = RunRegistry(runs).find("last")
    folder.result_file.unlink()
    manifest = folder.read_manifest().to_dict()
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


def test_a_limit_reads_the_newest_runs_only(runs: Path) -> None:
    registry = RunRegistry(runs)
    every = registry.rows()
    (runs / every[-1].run_id / "spec.json").write_text("{")
    assert registry.rows(2) == every[:2]
    assert registry.count() == 3


@pytest.mark.slow
def test_several_processes_list_at_once(runs: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        assert pool.map(_count_rows, [runs] * 8) == [3] * 8
