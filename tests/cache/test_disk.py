"""Sizes as the disk has them."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.cache.scan.scanning import scan
from tests.support.hub_cache import (
    bytes_on_disk,
    commit_of,
    write_repo,
)

WEIGHTS = bytes(range(256)) * 40


def hub_of(cache_dir: Path) -> Path:
    return cache_dir / "huggingface" / "hub"


def test_the_total_is_what_the_disk_says(cache_dir: Path) -> None:
    hub = hub_of(cache_dir)
    shared = {"model.safetensors": WEIGHTS}
    write_repo(hub, "org/a", {commit_of("1"): shared, commit_of("2"): shared}, refs={})
    write_repo(hub, "org/b", {commit_of("3"): {"x": b"123"}}, refs={})
    assert scan(cache_dir).bytes == bytes_on_disk(cache_dir)
