"""Downloads that the cache saved, from the manifests of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.errors import CacheError
from ml_experiments.runs.cache_stats import read_stats
from tests.support.hub_cache import commit_of

A = commit_of("a")


def test_stats_count_hits_and_downloads_of_runs(tmp_path: Path) -> None:
    def use(name: str, hit: bool) -> dict[str, Any]:
        return {"repo_id": name, "kind": "model", "revision": A, "bytes": 1000, "hit": hit}

    manifests: dict[str, Any] = {
        "r1": {"cached_models": [use("org/a", False)]},
        "r2": {"cached_models": [use("org/a", True), use("org/b", False)]},
        "r3": {"cached_models": [use("org/a", True)]},
        "before-this": {"git": {}},
    }
    for run, manifest in manifests.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "cut-short").mkdir()
    (tmp_path / "cut-short" / "manifest.json").write_text('{"cached_models": [')
    stats = read_stats(tmp_path).to_dict()
    assert (stats["runs"], stats["hits"], stats["downloads"]) == (3, 2, 2)
    assert (stats["bytes_saved"], stats["bytes_downloaded"]) == (2000, 2000)
    assert [(r["repo_id"], r["hits"]) for r in stats["revisions"]] == [("org/a", 2), ("org/b", 0)]
    assert stats["unreadable"] == ["cut-short"]


def test_stats_of_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no folder of runs"):
        read_stats(tmp_path / "missing")
