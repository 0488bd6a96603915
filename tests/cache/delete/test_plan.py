from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.errors import CacheError
from tests.support.held_files import LOCK, MAP, OPEN, held_by_process
from tests.support.hub_cache import (
    bytes_on_disk,
    commit_of,
    delete,
    fingerprint,
    set_age,
    share_blobs,
    write_repo,
)
from tests.support.hub_server import HubServer

WEIGHTS = bytes(range(256)) * 40
A, B, C = commit_of("a"), commit_of("b"), commit_of("c")


def test_a_downloaded_model_goes_with_all_that_the_library_wrote_for_it(
    cache_dir: Path, hub_dir: Path, hub: HubServer
) -> None:
    for name in ("org/going", "org/staying"):
        hub.add_repo(name, {"config.json": b"{}", "model.safetensors": WEIGHTS})
        pull(name, cache_dir=cache_dir, **hub.anonymous)
    staying = fingerprint(hub_dir / "models--org--staying")
    outcome = delete(cache_dir, "org/going")
    assert (outcome["deleted"], outcome["names"]) == (1, ["org/going"])
    assert outcome["freed_bytes"] > len(WEIGHTS)
    assert fingerprint(hub_dir / "models--org--staying") == staying
    assert not [p for p in hub_dir.rglob("*") if "going" in p.name]


def test_planning_changes_nothing_and_names_what_execution_deletes(
    cache_dir: Path, hub_dir: Path
) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    write_repo(hub_dir, "org/b", {C: {"x": b"333"}})
    before = fingerprint(cache_dir)
    plan = plan_deletion(cache_dir, "org/a")
    assert fingerprint(cache_dir) == before
    foreseen, done = plan.to_dict(), plan.execute().to_dict()
    assert (foreseen.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert foreseen == done
    assert scan(cache_dir).model_names() == ["org/b"]


def test_a_pattern_is_a_glob_in_any_case(cache_dir: Path, hub_dir: Path) -> None:
    for name in ("StabilityAI/SDXL-turbo", "stabilityai/sd-2", "other/sdxl-lora"):
        write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}})
    assert delete(cache_dir, "*SdXl*")["names"] == ["StabilityAI/SDXL-turbo", "other/sdxl-lora"]
    assert delete(cache_dir, "STABILITYAI/*")["names"] == ["stabilityai/sd-2"]


def test_one_revision_goes_and_the_blobs_it_shares_stay(cache_dir: Path, hub_dir: Path) -> None:
    shared = {"model.safetensors": WEIGHTS}
    repo = write_repo(hub_dir, "org/a", {A: {**shared, "x": b"1"}, B: {**shared, "x": b"22"}})
    outcome = delete(cache_dir, f"org/a@{B[:6]}")
    assert outcome["names"] == [f"org/a@{B}"]
    assert outcome["freed_bytes"] == 2
    assert (repo / "snapshots" / A / "model.safetensors").read_bytes() == WEIGHTS


def test_a_branch_names_its_revision(cache_dir: Path, hub_dir: Path) -> None:
    refs = {"main": A, "v1": B}
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}}, refs=refs)
    assert delete(cache_dir, "org/a@v1")["names"] == [f"org/a@{B}"]


def test_a_beginning_that_two_revisions_share_deletes_neither(
    cache_dir: Path, hub_dir: Path
) -> None:
    commits = ["abcd" + "0" * 36, "abcd" + "1" * 36]
    write_repo(hub_dir, "org/a", {c: {"x": c.encode()} for c in commits})
    outcome = delete(cache_dir, "org/a@abcd")
    assert outcome["names"] == []
    assert "several revisions" in outcome["kept"][0]["why"]


def test_a_mirror_with_the_same_commit_is_not_taken_for_the_original(
    cache_dir: Path, hub_dir: Path
) -> None:
    for name in ("original/model", "mirror/model", "another/model"):
        write_repo(hub_dir, name, {A: {"x": b"same content, same commit"}})
    assert delete(cache_dir, "mirror/*")["names"] == ["mirror/model"]
    assert scan(cache_dir).model_names() == ["another/model", "original/model"]


def test_only_models_go_unless_other_kinds_are_asked_for(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    write_repo(hub_dir, "org/a", {B: {"x": b"22"}}, kind="dataset")
    table = cache_dir / "huggingface" / "datasets" / "org___a" / "default" / "0.0.0"
    table.mkdir(parents=True)
    (table / "dataset_info.json").write_text("{}")
    checkpoint = cache_dir / "torch" / "hub" / "checkpoints" / "net.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    outcome = delete(cache_dir)
    assert outcome["names"] == ["org/a"]
    assert [(kept["name"], kept["kind"]) for kept in outcome["kept"]] == [
        ("net.pth", "torch"),
        ("org/a", "dataset"),
        ("org/a", "dataset"),
    ]
    assert delete(cache_dir, "org/a", kinds=["dataset"])["names"] == ["org/a", "org/a"]
    assert not table.exists()
    assert delete(cache_dir, "net*", kinds=["torch"])["names"] == ["net.pth"]
    assert not checkpoint.exists()


def test_older_than_keeps_what_was_used_lately(cache_dir: Path, hub_dir: Path) -> None:
    for name, days in (("org/old", 40), ("org/new", 5), ("org/recorded", 40)):
        set_age(write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}}), days=days)
    used = UsedRevision("org/recorded", "model", commit_of("org/recorded"), 1, True)
    record_uses(cache_dir, [used], at=time.time() - 2 * 86400)
    outcome = delete(cache_dir, older_than=timedelta(days=30))
    assert outcome["names"] == ["org/old"]
    assert {kept["name"].partition("@")[0]: kept["why"] for kept in outcome["kept"]} == {
        "org/new": "was used 5 days ago",
        "org/recorded": "was used 2 days ago",
    }


def test_larger_than_keeps_what_is_small(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/small", {A: {"x": b"1" * 100}})
    write_repo(hub_dir, "org/large", {B: {"x": b"1" * 101}})
    outcome = delete(cache_dir, larger_than=100)
    assert outcome["names"] == ["org/large"]
    assert outcome["kept"][0]["why"] == "is not larger than what was asked for"


def test_keep_latest_keeps_what_main_names_even_if_another_is_newer(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}}, refs={"main": A})
    later = time.time() + 60
    os.utime((repo / "snapshots" / B / "x").resolve(), (later, later))
    outcome = delete(cache_dir, keep_latest=True)
    assert outcome["names"] == [f"org/a@{B}"]
    assert outcome["kept"][0]["why"] == "is the latest revision"
    assert [r.commit for r in scan(cache_dir).items[0].revisions] == [A]


def test_keep_latest_without_main_keeps_the_newest(cache_dir: Path, hub_dir: Path) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}}, refs={})
    set_age(repo, days=3)
    write_repo(hub_dir, "org/a", {B: {"x": b"22"}}, refs={})
    assert delete(cache_dir, keep_latest=True)["names"] == [f"org/a@{A}"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"pattern": ""}, "the pattern is empty"),
        ({"pattern": "../../etc"}, "it has '..'"),
        ({"pattern": "/etc/*"}, "it is a path"),
        ({"kinds": ["models"]}, "is not a kind"),
        ({"kinds": []}, "is not a kind"),
        ({"older_than": timedelta(days=-1)}, "can't be negative"),
        ({"larger_than": -1}, "can't be negative"),
    ],
)
def test_bad_input_is_an_error_and_changes_nothing(
    cache_dir: Path, hub_dir: Path, arguments: dict[str, Any], problem: str
) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    before = fingerprint(cache_dir)
    with pytest.raises(CacheError, match=problem):
        plan_deletion(cache_dir, **arguments)
    assert fingerprint(cache_dir) == before


def test_a_pattern_that_matches_nothing_says_so(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/name", {A: {"x": b"1"}})
    outcome = delete(cache_dir, "org/nmae")
    assert (outcome["deleted"], outcome["freed_mb"]) == (0, 0)
    assert outcome["notes"] == [
        "nothing in the cache matches 'org/nmae' (did you mean 'org/name'?)"
    ]


def test_an_empty_or_missing_cache_has_nothing_to_delete(cache_dir: Path) -> None:
    assert delete(cache_dir)["deleted"] == 0
    assert plan_deletion(cache_dir / "missing").execute().bytes == 0
    assert not (cache_dir / "missing").exists()


def test_tokens_and_unrecognised_files_stay(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    home = cache_dir / "huggingface"
    mine = [home / "token", home / "stored_tokens", hub_dir / "notes.txt", cache_dir / "other"]
    mine += [home / "xet" / "chunks", home / "transformers" / "version.txt"]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    before = fingerprint(cache_dir)
    assert delete(cache_dir, kinds=["model", "dataset", "space", "kernel", "torch"])["deleted"] == 1
    after = fingerprint(cache_dir)
    assert all(after[str(file)] == before[str(file)] for file in mine)


def test_a_damaged_repository_is_kept_and_said_to_be(cache_dir: Path, hub_dir: Path) -> None:
    (hub_dir / "models--org--broken").mkdir(parents=True)
    (hub_dir / "models--org--broken" / "weights.bin").write_bytes(b"mine")
    outcome = delete(cache_dir, "org/broken")
    assert outcome["names"] == []
    assert "is damaged" in outcome["kept"][0]["why"]


# links


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


# the shared blob store


def test_a_shared_blob_goes_with_the_last_model_that_uses_it(
    cache_dir: Path, hub_dir: Path
) -> None:
    for name in ("org/a", "org/b", "org/c"):
        write_repo(hub_dir, name, {commit_of(name): {"m.safetensors": WEIGHTS}})
    stored = share_blobs(hub_dir, "org--a", "org--b", "org--c")
    assert scan(cache_dir).bytes == scan_cache_dir(hub_dir).size_on_disk == len(WEIGHTS)
    first = plan_deletion(cache_dir, "org/a")
    assert first.bytes < 200
    assert delete(cache_dir, "org/a")["freed_bytes"] == first.bytes
    assert stored.read_bytes() == WEIGHTS
    rest = plan_deletion(cache_dir)
    assert rest.bytes > len(WEIGHTS)
    assert [entry.bytes > len(WEIGHTS) for entry in rest.entries] == [False, True]
    assert delete(cache_dir)["freed_bytes"] == rest.bytes
    assert not stored.exists()


def test_a_store_in_an_unknown_layout_is_reported_and_nothing_of_it_touched(
    cache_dir: Path, hub_dir: Path
) -> None:
    write_repo(hub_dir, "org/a", {A: {"m.safetensors": WEIGHTS}})
    write_repo(hub_dir, "org/plain", {B: {"x": b"1"}})
    share_blobs(hub_dir, "org--a")
    (hub_dir / "blobs" / ".huggingface-shared-blobs").write_text("2\n")
    before = fingerprint(hub_dir / "models--org--a") | fingerprint(hub_dir / "blobs")
    assert "layout" in scan(cache_dir).unrecognised[0].why
    outcome = delete(cache_dir)
    assert outcome["names"] == ["org/plain"]
    assert "unknown layout" in outcome["kept"][0]["why"]
    after = fingerprint(hub_dir / "models--org--a") | fingerprint(hub_dir / "blobs")
    assert after == before


# interrupted downloads and locks


def test_an_interrupted_download_goes_once_it_is_surely_over(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    partial = repo / "blobs" / f"{'0' * 64}.1a2b3c4d.incomplete"
    partial.write_bytes(b"half")
    outcome = delete(cache_dir, keep_latest=True)
    assert outcome["leftovers"] == []
    assert [kept["why"] for kept in outcome["kept"]] == [
        "is the latest revision",
        "is a download that may be going on",
    ]
    set_age(repo, days=1)
    outcome = delete(cache_dir, keep_latest=True)
    assert [leftover["bytes"] for leftover in outcome["leftovers"]] == [4]
    assert (outcome["deleted"], outcome["freed_bytes"]) == (0, 4)
    assert not partial.exists()


def test_a_model_that_is_being_downloaded_is_kept(cache_dir: Path, hub_dir: Path) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    (repo / "blobs" / f"{'0' * 40}.1a2b3c4d.incomplete").write_bytes(b"half")
    assert delete(cache_dir)["kept"][0]["why"] == "is being downloaded"


def test_stale_locks_go_and_fresh_ones_stay(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    locks = hub_dir / ".locks" / "models--org--gone"
    locks.mkdir(parents=True)
    (locks / "old.lock").touch()
    set_age(locks, days=1)
    (locks / "fresh.lock").touch()
    outcome = delete(cache_dir, "org/gone")
    assert [leftover["path"] for leftover in outcome["leftovers"]] == [
        "huggingface/hub/.locks/models--org--gone/old.lock"
    ]
    assert [path.name for path in locks.iterdir()] == ["fresh.lock"]


# in use


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("code", [MAP, OPEN])
def test_a_model_that_a_process_uses_is_kept_and_the_rest_goes(
    cache_dir: Path, hub_dir: Path, code: str
) -> None:
    used = write_repo(hub_dir, "org/used", {A: {"m.safetensors": WEIGHTS}})
    write_repo(hub_dir, "org/unused", {B: {"m.safetensors": WEIGHTS}})
    with held_by_process(code, str(used / "snapshots" / A / "m.safetensors")):
        outcome = delete(cache_dir)
        assert outcome["names"] == ["org/unused"]
        assert "is in use by python" in outcome["kept"][0]["why"]
    assert delete(cache_dir)["names"] == ["org/used"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_model_that_came_into_use_since_the_plan_is_kept(cache_dir: Path, hub_dir: Path) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"m.safetensors": WEIGHTS}})
    plan = plan_deletion(cache_dir)
    assert plan.names == ("org/a",)
    with held_by_process(OPEN, str(repo / "snapshots" / A / "m.safetensors")):
        outcome = plan.execute()
    assert outcome.names == ()
    assert "is in use by" in outcome.failed[0].why
    assert outcome.bytes == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_model_whose_lock_is_held_is_kept(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    lock = hub_dir / ".locks" / "models--org--a" / "etag.lock"
    lock.parent.mkdir(parents=True)
    with held_by_process(LOCK, str(lock)):
        assert "is being downloaded by python" in delete(cache_dir)["kept"][0]["why"]


# what changes between plan and execution


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
    assert [(kept.name, kept.why) for kept in outcome.failed] == [("org/b", "is gone already")]


@pytest.mark.parametrize("joins", ["another model", "a revision", "a file"])
def test_only_what_was_confirmed_is_deleted(cache_dir: Path, hub_dir: Path, joins: str) -> None:
    for name in ("org/a", "org/b"):
        write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}})
    confirmed = [entry["key"] for entry in plan_deletion(cache_dir).to_dict()["entries"]]
    match joins:
        case "another model":
            write_repo(hub_dir, "org/c", {C: {"x": b"1"}})
        case "a revision":
            write_repo(hub_dir, "org/b", {C: {"x": b"22"}}, refs={})
        case "a file":
            write_repo(hub_dir, "org/b", {commit_of("org/b"): {"y": b"22"}})
    outcome = delete(cache_dir, only=confirmed)
    assert outcome["names"] == (["org/a", "org/b"] if joins == "another model" else ["org/a"])
    assert "was not in the plan that was confirmed" in outcome["kept"][0]["why"]


def test_the_list_of_files_that_the_library_keeps_goes_with_its_revision(
    cache_dir: Path, hub_dir: Path, hub: HubServer
) -> None:
    files = {"config.json": b"{}"}
    repo = hub.add_repo("org/listed", files, revisions={"v2": {"config.json": b"[1]"}})
    for revision in ("main", "v2"):
        pull("org/listed", cache_dir=cache_dir, **hub.anonymous, revision=revision)
    trees = hub_dir / "models--org--listed" / "trees"
    assert len(list(trees.iterdir())) == 2
    delete(cache_dir, "org/listed@v2")
    assert [path.stem for path in trees.iterdir()] == [repo.commit]


# what can't be deleted


@pytest.fixture
def immutable(hub_dir: Path) -> Iterator[Path]:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1", "y": b"22"}})
    blob = (repo / "snapshots" / A / "y").resolve()
    made = shutil.which("chattr") and subprocess.run(["chattr", "+i", blob], check=False)
    if not made or made.returncode:
        pytest.skip("making a file immutable takes root and a file system that knows it")
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


EXECUTE = """
import json, sys
from ml_experiments.cache.delete.plan import plan_deletion
print(json.dumps(plan_deletion(sys.argv[1]).execute().to_dict()))
"""


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


def test_very_long_and_unicode_names_are_deleted_by_name(cache_dir: Path, hub_dir: Path) -> None:
    names = [f"org/{'n' * 230}", "組織/模型-ü"]
    for name in names:
        write_repo(hub_dir, name, {commit_of(name): {"a": b"x"}})
    assert delete(cache_dir, "組織/*Ü")["names"] == [names[1]]
    assert delete(cache_dir, "org/nnn*")["names"] == [names[0]]


@pytest.mark.slow
def test_two_thousand_repositories_go_in_one_plan(cache_dir: Path, hub_dir: Path) -> None:
    for number in range(2000):
        write_repo(hub_dir, f"org{number % 20}/m{number}", {commit_of(str(number)): {"x": b"12"}})
    outcome = delete(cache_dir, "org7/*")
    assert outcome["deleted"] == 100
    assert delete(cache_dir)["deleted"] == 1900
    assert scan(cache_dir).items == ()


def test_the_record_of_its_use_goes_with_a_revision(cache_dir: Path, hub_dir: Path) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    record_uses(cache_dir, [UsedRevision("org/a", "model", c, 1, True) for c in (A, B)])
    records = cache_dir / "huggingface" / ".ml-experiments" / "uses" / "models--org--a"
    delete(cache_dir, f"org/a@{B}")
    assert [path.stem for path in records.iterdir()] == [A]
    delete(cache_dir, "org/a")
    assert not records.exists()


def test_records_behind_a_link_are_neither_read_nor_written_nor_deleted(
    cache_dir: Path, hub_dir: Path, tmp_path: Path
) -> None:
    set_age(write_repo(hub_dir, "org/a", {A: {"x": b"1"}}), days=40)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "uses" / "models--org--a").mkdir(parents=True)
    (elsewhere / "uses" / "models--org--a" / f"{A}.json").write_text('{"last_used": 9e9}')
    (cache_dir / "huggingface" / ".ml-experiments").symlink_to(elsewhere)
    before = fingerprint(elsewhere)
    record_uses(cache_dir, [UsedRevision("org/a", "model", A, 1, True)])
    assert delete(cache_dir, older_than=timedelta(days=30))["names"] == ["org/a"]
    assert fingerprint(elsewhere) == before
