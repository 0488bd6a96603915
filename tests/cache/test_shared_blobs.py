"""The store of files that repositories share."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import scan_cache_dir

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.scan.scanning import scan
from tests.support.hub_cache import (
    commit_of,
    delete,
    fingerprint,
    share_blobs,
    write_repo,
)

WEIGHTS = bytes(range(256)) * 40
A, B, C = commit_of("a"), commit_of("b"), commit_of("c")


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
