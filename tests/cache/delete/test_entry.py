"""One entry of a plan: its files, its bytes, and whether it is still what was planned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.pull.pulling import pull
from tests.support.hub_cache import (
    bytes_on_disk,
    commit_of,
    delete,
    fingerprint,
    write_repo,
)
from tests.support.hub_server import HubServer

A, B, C = commit_of("a"), commit_of("b"), commit_of("c")
EXECUTE = """
import json, sys
from ml_experiments.cache.delete.plan import plan_deletion
print(json.dumps(plan_deletion(sys.argv[1]).execute().to_dict()))
"""


def test_a_blob_that_was_moved_elsewhere_and_linked_is_not_deleted(
    cache_dir: Path, hub_dir: Path, tmp_path: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    [blob] = (repo / "blobs").iterdir()
    moved = tmp_path / "big-disk"
    shutil.move(blob, moved)
    blob.symlink_to(moved)
    outcome = delete(cache_dir)
    assert outcome["deleted"] == 0
    assert "leads elsewhere" in outcome["kept"][0]["why"]
    assert moved.read_bytes() == b"1"


def test_a_snapshot_file_that_leads_out_of_the_cache_is_not_followed(
    cache_dir: Path, hub_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    (repo / "snapshots" / B / "y").symlink_to(mine)
    for pattern in (f"org/a@{B[:8]}", "org/a"):
        assert delete(cache_dir, pattern)["deleted"] == 0
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "refs", f"snapshots/{A}"])
def test_a_folder_that_is_a_link_is_not_followed(
    cache_dir: Path, hub_dir: Path, tmp_path: Path, part: str
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    folder = repo / part
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    before = fingerprint(elsewhere)
    assert delete(cache_dir)["deleted"] == 0
    assert fingerprint(elsewhere) == before


def test_a_model_that_grew_since_the_plan_is_left_alone(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    plan = plan_deletion(cache_dir)
    write_repo(hub_dir, "org/a", {B: {"x": b"22"}}, refs={})
    before = fingerprint(cache_dir)
    outcome = plan.execute()
    assert "has changed since the plan" in outcome.failed[0].why
    assert fingerprint(cache_dir) == before


def test_a_new_revision_that_took_up_a_planned_blob_is_left_alone(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    plan = plan_deletion(cache_dir, f"org/a@{B}")
    write_repo(hub_dir, "org/a", {C: {"x": b"22"}}, refs={})
    assert "has changed since the plan" in plan.execute().failed[0].why
    assert (repo / "snapshots" / C / "x").read_bytes() == b"22"


@pytest.mark.parametrize("pattern", ["org/a", f"org/a@{B}"])
def test_a_model_that_became_a_link_since_the_plan_is_left_alone(
    cache_dir: Path, hub_dir: Path, tmp_path: Path, pattern: str
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    plan = plan_deletion(cache_dir, pattern)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(repo, elsewhere)
    repo.symlink_to(elsewhere)
    before = fingerprint(elsewhere)
    assert "has changed since the plan" in plan.execute().failed[0].why
    assert fingerprint(elsewhere) == before


def test_files_that_vanish_under_way_are_not_counted_as_freed(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1", "y": b"22"}})
    gone = write_repo(hub_dir, "org/b", {B: {"x": b"333"}})
    write_repo(hub_dir, "org/c", {C: {"x": b"4444"}})
    plan = plan_deletion(cache_dir)
    (repo / "snapshots" / A / "y").resolve().unlink()
    shutil.rmtree(gone)
    before = bytes_on_disk(cache_dir)
    outcome = plan.execute()
    assert outcome.names == ("org/a", "org/c")
    assert outcome.bytes == before - bytes_on_disk(cache_dir) == 1 + 40 + 4 + 40
    assert outcome.failed == (), "what was to go is gone, whoever deleted it"
    assert outcome.notes == ("org/b is gone already",)


def test_deletions_on_two_machines_at_once_finish_what_the_other_began(
    cache_dir: Path, hub_dir: Path
) -> None:
    repos = [
        write_repo(hub_dir, f"org/m{n}", {A: {f"f{m}/x": b"%d" % m for m in range(30)}})
        for n in range(10)
    ]
    plans = [plan_deletion(cache_dir) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda plan: plan.execute(), plans))
    assert [outcome.failed for outcome in outcomes] == [(), (), ()]
    assert not [repo for repo in repos if repo.exists()]


def test_the_list_of_files_that_the_library_keeps_goes_with_its_revision(
    cache_dir: Path, hub_dir: Path, hub: HubServer
) -> None:
    files = {"config.json": b"{}"}
    repo = hub.add_repo("org/listed", files, revisions={"v2": {"config.json": b"[1]"}})
    for revision in ("main", "v2"):
        pull("org/listed", cache_dir=cache_dir, revision=revision)
    trees = hub_dir / "models--org--listed" / "trees"
    assert len(list(trees.iterdir())) == 2
    delete(cache_dir, "org/listed@v2")
    assert [path.stem for path in trees.iterdir()] == [repo.commit]


@pytest.fixture
def immutable(hub_dir: Path) -> Iterator[Path]:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1", "y": b"22"}})
    blob = (repo / "snapshots" / A / "y").resolve()
    made = shutil.which("chattr") and subprocess.run(["chattr", "+i", blob], check=False)
    if not made or made.returncode:
        pytest.skip("making a file immutable takes root and a file system that has the flag")
    yield blob
    subprocess.run(["chattr", "-i", blob], check=True)


def test_an_immutable_file_keeps_its_whole_model_and_the_rest_goes(
    cache_dir: Path, hub_dir: Path, immutable: Path
) -> None:
    write_repo(hub_dir, "org/b", {B: {"x": b"333"}})
    before = fingerprint(hub_dir / "models--org--a")
    outcome = delete(cache_dir)
    assert outcome["names"] == ["org/b"]
    assert outcome["failed"][0]["name"] == "org/a"
    assert f"{immutable} is read-only" in outcome["failed"][0]["why"]
    assert fingerprint(hub_dir / "models--org--a") == before


def test_a_read_only_folder_keeps_its_model_for_an_ordinary_user(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    write_repo(hub_dir, "org/b", {B: {"x": b"333"}})
    (repo / "blobs").chmod(0o555)
    command = [sys.executable, "-c", EXECUTE, str(cache_dir)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can write anywhere; without setpriv it can't give that up")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    before = bytes_on_disk(cache_dir)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcome = json.loads(done.stdout)
    assert outcome["names"] == ["org/b"]
    assert "is read-only" in outcome["failed"][0]["why"]
    assert outcome["freed_bytes"] == before - bytes_on_disk(cache_dir)
    (repo / "blobs").chmod(0o755)
    assert (repo / "snapshots" / A / "x").read_bytes() == b"1"


def test_a_read_only_file_in_a_writable_folder_is_no_obstacle(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    (repo / "snapshots" / A / "x").resolve().chmod(0o444)
    assert delete(cache_dir)["names"] == ["org/a"]


def test_a_file_with_a_second_hard_link_in_the_cache_counts_once(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1" * 100}}, refs={})
    backup = cache_dir / "backup"
    os.link((repo / "snapshots" / A / "x").resolve(), backup)
    assert delete(cache_dir)["freed_bytes"] == 0
    assert backup.read_bytes() == b"1" * 100
