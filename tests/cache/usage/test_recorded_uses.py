"""The record of when a revision was last used."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import CacheWatch, UsedRevision
from tests.support.hub_cache import (
    commit_of,
    delete,
    fingerprint,
    set_age,
    write_repo,
)

A = commit_of("a")
A, B, C = commit_of("a"), commit_of("b"), commit_of("c")


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


def test_a_recorded_use_is_when_it_was_last_used(cache_dir: Path) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    with CacheWatch(cache_dir) as watch:
        (repo / "snapshots" / A / "x").read_bytes()
    set_age(repo, days=90)
    now = time.time()
    record_uses(cache_dir, watch.used(), at=now)
    [item] = scan(cache_dir).items
    assert item.last_used == item.revisions[0].last_used == now
