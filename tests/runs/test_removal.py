"""Runs that are removed, and all that never is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.lock import RunLock
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.removal import plan_removal, remove_leftovers, remove_run
from tests.support.run_folders import write_run

FIRST, SECOND = (f"20260101-000000-000000{number}" for number in (1, 2))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for run_id in (FIRST, SECOND):
        write_run(folder, run_id).log_file.write_text("x" * 10_000)
    return folder


def test_a_plan_has_the_bytes_of_each_run_and_changes_nothing(runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    plan = plan_removal(runs, [FIRST, SECOND, FIRST])
    sizes = [sum(f.stat().st_size for f in (runs / run).iterdir()) for run in (FIRST, SECOND)]
    assert [run.size_bytes for run in plan.runs] == sizes
    assert plan.size_bytes == sum(sizes)
    assert sorted(runs.rglob("*")) == before


def test_a_removed_run_is_gone_from_the_folder_and_from_lists(runs: Path) -> None:
    registry = RunRegistry(runs)
    assert registry.count() == 2
    remove_run(runs, FIRST)
    assert [row.run_id for row in registry.rows()] == [SECOND]
    assert [path.name for path in runs.iterdir() if path.is_dir()] == [SECOND]


def test_a_run_that_goes_on_is_kept(runs: Path) -> None:
    for status in ("running", "pending"):
        name = f"20260102-000000-{status:.7}"
        where = {"process" if status == "running" else "client": this_process()}
        write_run(runs, "20260102-000000-0000001", status=None, manifest=where)
        (runs / "20260102-000000-0000001").rename(runs / name)
        plan = plan_removal(runs, [name])
        assert (plan.runs, plan.kept) == ((), ((name, f"it is {status}"),))
        with pytest.raises(RunFolderError, match=f"it is {status}"):
            remove_run(runs, name)
        assert (runs / name / "spec.json").exists()


def test_a_run_that_is_taken_up_meanwhile_is_kept(runs: Path) -> None:
    lock = RunLock.take(RunRegistry(runs).find(FIRST))
    with pytest.raises(RunFolderError, match="is being run"):
        remove_run(runs, FIRST)
    lock.release()
    remove_run(runs, FIRST)


def test_a_damaged_run_is_removed_once_it_is_silent(runs: Path) -> None:
    (runs / FIRST / "spec.json").write_text("{")
    (runs / FIRST / "result.json").unlink()
    plan = plan_removal(runs, [FIRST])
    assert "may go on" in plan.kept[0][1]
    for file in (runs / FIRST).iterdir():
        os.utime(file, (0, 0))
    remove_run(runs, FIRST)
    assert not (runs / FIRST).exists()


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../outside", "other", "link", "file"])
def test_nothing_but_folders_of_runs_is_removed(runs: Path, tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "outside", FIRST)
    (runs / "other").mkdir()
    (runs / "file").touch()
    (runs / "link").symlink_to(tmp_path / "outside" / FIRST)
    before = sorted(tmp_path.rglob("*"))
    for given in (name, f"{name}/{FIRST}" if name == "../outside" else name):
        assert plan_removal(runs, [given]).runs == ()
        with pytest.raises(RunFolderError, match="not the folder of a run"):
            remove_run(runs, given)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_run_are_removed_and_not_followed(runs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_bytes(b"x" * 100_000)
    (runs / FIRST / "data").symlink_to(outside)
    (runs / FIRST / "one").symlink_to(outside / "data")
    os.mkfifo(runs / FIRST / "pipe")
    assert plan_removal(runs, [FIRST]).size_bytes < 50_000
    remove_run(runs, FIRST)
    assert (outside / "data").stat().st_size == 100_000


def test_a_runs_folder_that_is_a_link_is_the_users_choice(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs)
    remove_run(tmp_path / "link", FIRST)
    assert not (runs / FIRST).exists()


def test_what_a_killed_removal_left_is_removed_by_the_next(runs: Path, tmp_path: Path) -> None:
    left = runs / f".removed-{FIRST}-0123abcd"
    (runs / FIRST).rename(left)
    (runs / ".removed-link").symlink_to(tmp_path)
    assert [row.run_id for row in RunRegistry(runs).rows()] == [SECOND]
    remove_leftovers(runs)
    assert not left.exists()
    assert (runs / SECOND).exists()


@pytest.fixture
def read_only(runs: Path) -> Iterator[Path]:
    if shutil.which("chattr") is None:
        pytest.skip("needs chattr")
    made = subprocess.run(["chattr", "+i", runs], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("the file system has no immutable folders")
    yield runs
    subprocess.run(["chattr", "-i", runs], check=True)


def test_a_run_that_cannot_be_removed_stays_whole(read_only: Path) -> None:
    with pytest.raises(RunFolderError, match="can't be removed"):
        remove_run(read_only, FIRST)
    assert (read_only / FIRST / "result.json").exists()
    assert (read_only / FIRST / ".lock").exists() is False
