"""Over generated caches: a dry run names exactly what force deletes, and nothing else changes."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import UsedRevision
from ml_experiments.errors import CacheError
from tests.support.hub_cache import (
    bytes_on_disk,
    commit_of,
    fingerprint,
    model_names,
    set_age,
    write_repo,
)

NAMES = st.sampled_from(["gpt2", "Org/A", "org/sdxl-turbo", "stab/sdxl", "é/ü", "x/" + "y" * 90])
# few contents, so that revisions share blobs
CONTENTS = st.sampled_from([b"", b"1", b"22" * 50, b"333" * 500])
FILES = st.dictionaries(
    st.sampled_from(["config.json", "unet/m.safetensors", "m.safetensors", "ü/日本"]),
    CONTENTS,
    max_size=4,
)
REPOS = st.fixed_dictionaries(
    {
        "revisions": st.dictionaries(
            st.sampled_from([commit_of(x) for x in "abcd"]), FILES, min_size=1, max_size=3
        ),
        "kind": st.sampled_from(["model", "model", "dataset"]),
        "store": st.sampled_from(["hub", "hub", "transformers"]),
        "days": st.sampled_from([0, 1, 50]),
        "has_main": st.booleans(),
        "partial_days": st.sampled_from([None, None, 0, 2]),
        "lock_days": st.sampled_from([None, 0, 2]),
        "foreign_link": st.sampled_from([False, False, False, True]),
        "was_used": st.booleans(),
    }
)
CACHES = st.dictionaries(NAMES, REPOS, max_size=5)
PATTERNS = st.sampled_from(
    [None, "*", "*sdxl*", "ORG/*", "gpt2", f"*@{commit_of('a')[:7]}", "org/a@main", "nothing*"]
)
FILTERS = st.fixed_dictionaries(
    {
        "pattern": PATTERNS,
        "kinds": st.sampled_from([("model",), ("model", "dataset"), ("dataset",)]),
        "older_than": st.sampled_from([None, None, timedelta(days=10)]),
        "larger_than": st.sampled_from([None, None, 100]),
        "keep_latest": st.booleans(),
    }
)


def write_cache(root: Path, repos: dict[str, Any], outside: Path) -> None:
    for name, repo in repos.items():
        hub = root / "huggingface" / repo["store"]
        first = next(iter(repo["revisions"]))
        refs = {"main": first} if repo["has_main"] else {"v1": first}
        folder = write_repo(hub, name, repo["revisions"], refs=refs, kind=repo["kind"])
        if repo["foreign_link"]:
            (folder / "snapshots" / first / "linked").symlink_to(outside)
        if repo["partial_days"] is not None:
            partial = folder / "blobs" / f"{'0' * 64}.12345678.incomplete"
            partial.write_bytes(b"half")
        locks = hub / ".locks" / folder.name
        if repo["lock_days"] is not None:
            locks.mkdir(parents=True)
            (locks / "etag.lock").touch()
            set_age(locks, repo["lock_days"])
        set_age(folder, repo["days"])
        if repo["partial_days"] is not None:
            moment = time.time() - repo["partial_days"] * 86400
            os.utime(partial, (moment, moment))
        if repo["was_used"]:
            record_uses(root, [UsedRevision(name, repo["kind"], first, 0, True)])
    for mine in ("token", "stored_tokens", "hub/notes", "transformers/version.txt", "xet/log"):
        file = root / "huggingface" / mine
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(CACHES, FILTERS)
def test_force_deletes_exactly_what_the_dry_run_names_and_frees_what_it_says(
    repos: dict[str, Any], filters: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder, "cache"), Path(folder, "mine.txt")
        outside.write_text("mine")
        write_cache(root, repos, outside)
        before, bytes_before = fingerprint(root), bytes_on_disk(root)
        scanned = scan(root)
        assert scanned.bytes <= bytes_before
        plan = plan_deletion(root, **filters)
        dry = plan.to_dict()
        assert fingerprint(root) == before, "planning changed something"

        done = plan_deletion(root, **filters).execute().to_dict()

        assert done.pop("failed") == dry.pop("failed") == []
        assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
        assert done == dry
        assert done["freed_bytes"] == bytes_before - bytes_on_disk(root)
        after = fingerprint(root)
        planned = {path for entry in plan.entries for path in (*entry.files, *entry.side_files)}
        planned |= {str(leftover.path) for leftover in plan.leftovers}
        gone = {path for path in before if path not in after and before[path] != "folder"}
        assert gone == planned
        assert all(after[path] == before[path] for path in after)
        assert outside.read_text() == "mine"
        left = {(i.name, i.kind, r.commit) for i in scan(root).items for r in i.revisions}
        was = {(i.name, i.kind, r.commit) for i in scanned.items for r in i.revisions}
        assert was - left == {
            (entry.item.name, entry.item.kind, revision.commit)
            for entry in plan.entries
            for revision in entry.item.revisions
            if not entry.commits or revision.commit in entry.commits
        }
        assert [e.why for e in scan(root).unrecognised] == [e.why for e in scanned.unrecognised]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_no_pattern_changes_anything_outside_the_cache(pattern: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, around = Path(folder, "cache"), Path(folder, "around")
        write_repo(root / "huggingface" / "hub", "org/name", {commit_of("a"): {"x": b"1"}})
        around.mkdir()
        (around / "etc").write_text("mine")
        (root / "huggingface" / "token").write_text("secret")
        before = fingerprint(around)
        try:
            plan_deletion(root, pattern).execute()
        except CacheError:
            assert model_names(root) == ["org/name"]
        assert fingerprint(around) == before
        assert (root / "huggingface" / "token").read_text() == "secret"
