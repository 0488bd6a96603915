"""Counting what the cache saved survives whatever a run folder holds."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.cli.cache_report import print_stats
from ml_experiments.errors import CacheError
from ml_experiments.runs.reports.cache_stats import read_stats
from tests.support.hub_cache import commit_of

A = commit_of("a")
USE = {"kind": "model", "repo_id": "a", "revision": "b", "hit": True, "bytes": 7}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def write_manifest(runs_dir: Path, name: str, content: bytes) -> None:
    (runs_dir / name).mkdir()
    (runs_dir / name / "manifest.json").write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"cached_models": ' + b"[" * 100_000,
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'{"cached_models": 3}',
        b'{"cached_models": {"repo_id": 3}}',
        *(
            json.dumps({"cached_models": [{**USE, **change}]}).encode()
            for change in (
                {"bytes": math.inf},
                {"bytes": math.nan},
                {"bytes": 10**400},
                {"bytes": -1},
                {"bytes": 1.5},
                {"bytes": "7"},
                {"repo_id": None},
                {"kind": []},
                {"hit": "no"},
            )
        ),
        b'{"cached_models": [{"bytes": 1e999}]}',
        b'{"cached_models": [{"bytes": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_a_manifest_that_is_not_one_is_named_and_the_others_count(
    tmp_path: Path, content: bytes
) -> None:
    write_manifest(tmp_path, "bad", content)
    write_manifest(tmp_path, "good", json.dumps({"cached_models": [USE]}).encode())
    stats = read_stats(tmp_path)
    print_stats(stats.to_dict())
    assert (stats.runs, stats.unreadable) == (1, ("bad",))
    assert [(r.repo_id, r.hits, r.bytes_saved) for r in stats.revisions] == [("a", 1, 7)]


@pytest.mark.parametrize("kind", ["folder", "FIFO", "loop", "device"])
def test_what_is_named_like_a_manifest_and_is_no_file_is_not_opened(
    tmp_path: Path, kind: str
) -> None:
    odd = tmp_path / "odd" / "manifest.json"
    odd.parent.mkdir()
    match kind:
        case "folder":
            odd.mkdir()
        case "FIFO":
            os.mkfifo(odd)
        case "loop":
            odd.symlink_to(odd.name)
        case "device":
            odd.symlink_to("/dev/zero")
    assert read_stats(tmp_path).unreadable == ("odd",)


@given(JSON | st.fixed_dictionaries(dict.fromkeys(USE, JSON)).map(lambda use: [use]))
def test_any_record_of_cached_models_is_read_or_named(cached: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), "any", json.dumps({"cached_models": cached}).encode())
        stats = read_stats(folder)
        print_stats(stats.to_dict())
        json.dumps(stats.to_dict(), allow_nan=False)


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
