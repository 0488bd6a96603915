"""What a pattern and the limits of age and size select."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.errors import CacheError
from tests.support.hub_cache import (
    commit_of,
    delete,
    fingerprint,
    set_age,
    write_repo,
)

A, B, C = commit_of("a"), commit_of("b"), commit_of("c")


def test_a_pattern_is_a_glob_in_any_case(cache_dir: Path, hub_dir: Path) -> None:
    for name in ("StabilityAI/SDXL-turbo", "stabilityai/sd-2", "other/sdxl-lora"):
        write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}})
    assert delete(cache_dir, "*SdXl*")["names"] == ["StabilityAI/SDXL-turbo", "other/sdxl-lora"]
    assert delete(cache_dir, "STABILITYAI/*")["names"] == ["stabilityai/sd-2"]


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
    assert outcome["kept"][0]["why"] == "is not larger than the given size"


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
