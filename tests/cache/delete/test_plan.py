from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.scan.scanning import scan
from tests.support.hub_cache import (
    commit_of,
    delete,
    fingerprint,
    model_names,
    set_age,
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
        pull(name, cache_dir=cache_dir)
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
    assert model_names(cache_dir) == ["org/b"]


def test_one_revision_goes_and_the_blobs_it_shares_stay(cache_dir: Path, hub_dir: Path) -> None:
    shared = {"model.safetensors": WEIGHTS}
    repo = write_repo(hub_dir, "org/a", {A: {**shared, "x": b"1"}, B: {**shared, "x": b"22"}})
    outcome = delete(cache_dir, f"org/a@{B[:6]}")
    assert outcome["names"] == [f"org/a@{B}"]
    assert outcome["freed_bytes"] == 2
    assert (repo / "snapshots" / A / "model.safetensors").read_bytes() == WEIGHTS


def test_a_mirror_with_the_same_commit_is_not_taken_for_the_original(
    cache_dir: Path, hub_dir: Path
) -> None:
    for name in ("original/model", "mirror/model", "another/model"):
        write_repo(hub_dir, name, {A: {"x": b"same content, same commit"}})
    assert delete(cache_dir, "mirror/*")["names"] == ["mirror/model"]
    assert model_names(cache_dir) == ["another/model", "original/model"]


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


# the shared blob store


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


# what changes between plan and execution


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


# what can't be deleted


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
