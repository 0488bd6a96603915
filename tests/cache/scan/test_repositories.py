"""What a download leaves that failed before its first file can be seen, and cleared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError

from ml_experiments.cache.scan.scanning import scan
from tests.support.hub_cache import commit_of, delete, set_age, share_blobs, write_repo
from tests.support.hub_server import HubServer

WEIGHTS = bytes(range(256)) * 40
A = commit_of("a")


@pytest.mark.parametrize("has_snapshots", [False, True])
def test_what_a_failed_download_left_goes_once_it_is_surely_over(
    cache_dir: Path, hub_dir: Path, has_snapshots: bool
) -> None:
    repo = hub_dir / "models--org--failed"
    for folder in ("blobs", "refs", *(["snapshots"] if has_snapshots else [])):
        (repo / folder).mkdir(parents=True)
    (repo / "blobs" / ("0" * 40)).write_bytes(b"a blob that nothing leads to")
    (repo / "blobs" / f"{'1' * 64}.incomplete").write_bytes(b"half")
    (repo / "refs" / "main").write_text(A)
    assert [(i.name, i.file_count) for i in scan(cache_dir).items] == [("org/failed", 0)]
    assert scan(cache_dir).bytes == 28 + 4 + 40
    set_age(repo, days=1)
    (repo / "refs" / "main").touch()
    outcome = delete(cache_dir)
    assert outcome["names"] == []
    assert "its download may be going on" in outcome["kept"][0]["why"]
    assert [leftover["bytes"] for leftover in outcome["leftovers"]] == [4]
    set_age(repo, days=1)
    outcome = delete(cache_dir, keep_latest=True)
    assert (outcome["names"], outcome["freed_bytes"]) == (["org/failed"], 28 + 40)
    assert not repo.exists()


def test_a_gated_model_that_was_refused_leaves_nothing_that_cannot_be_cleared(
    cache_dir: Path, hub_dir: Path, hub: HubServer
) -> None:
    hub.add_repo("org/refused", {"config.json": b"{}"}, gated=True)
    with pytest.raises(GatedRepoError):
        snapshot_download("org/refused", cache_dir=hub_dir)
    set_age(hub_dir, days=1)
    assert scan(cache_dir).unrecognised == ()
    assert delete(cache_dir)["names"] == ["org/refused"]
    assert not (hub_dir / "models--org--refused").exists()


def test_a_link_into_the_shared_store_without_a_revision_stays(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"m.safetensors": WEIGHTS}})
    stored = share_blobs(hub_dir, "org--a")
    shutil.rmtree(repo / "snapshots" / A)
    set_age(repo, days=1)
    assert "is damaged" in delete(cache_dir)["kept"][0]["why"]
    assert stored.exists()
