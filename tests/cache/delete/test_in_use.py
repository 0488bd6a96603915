"""What is in use is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.cache.delete.plan import plan_deletion
from tests.support.held_files import LOCK, MAP, OPEN, held_by_process
from tests.support.hub_cache import (
    commit_of,
    delete,
    write_repo,
)

WEIGHTS = bytes(range(256)) * 40
A, B, C = commit_of("a"), commit_of("b"), commit_of("c")


def test_a_model_that_is_being_downloaded_is_kept(cache_dir: Path, hub_dir: Path) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    (repo / "blobs" / f"{'0' * 40}.1a2b3c4d.incomplete").write_bytes(b"half")
    assert delete(cache_dir)["kept"][0]["why"] == "is being downloaded"


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
