"""What the commands and Modal's functions call: JSON in, JSON out, whatever they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.cache.operations import OPERATIONS
from ml_experiments.errors import CacheError
from tests.support.hub_cache import commit_of, write_repo

A = commit_of("a")


@pytest.mark.parametrize(
    ("operation", "arguments", "problem"),
    [
        ("list", {"sort": "age"}, "'age' is not an order; known: name, size, used"),
        ("list", {"kind": "models"}, "'models' is not a kind; known: model, dataset"),
        ("list", {"pattern": ""}, "the pattern is empty"),
        ("show", {"name": "org/nam"}, r"nothing in the cache is named 'org/nam' \(did you mean"),
        ("clear", {"kinds": ["models"]}, "is not a kind of cached thing; known: model, dataset"),
        ("clear", {"pattern": 3}, "a pattern is a string, not int"),
        ("verify", {"name": "org/nam"}, "nothing in the cache matches"),
        ("pull", {"name": "org/name", "revision": ".."}, "is not a commit hash"),
    ],
)
def test_what_is_not_usable_is_an_error_that_says_what_is(
    cache_dir: Path, operation: str, arguments: dict[str, Any], problem: str
) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/name", {A: {"x": b"1"}})
    with pytest.raises(CacheError, match=problem):
        OPERATIONS[operation](cache_dir, **arguments)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("list", {}), ("show", {"name": "org/name"}), ("clear", {}), ("verify", {})],
)
def test_an_answer_is_strict_json(
    cache_dir: Path, operation: str, arguments: dict[str, Any]
) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/name", {A: {"x": b"1"}})
    outcome = OPERATIONS[operation](cache_dir, **arguments)
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome


def test_a_deletion_has_the_documented_keys_and_more(cache_dir: Path) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/name", {A: {"x": b"1"}})
    for force in (False, True):
        outcome = OPERATIONS["clear"](cache_dir, "org/*", force=force)
        assert (outcome["deleted"], outcome["dry_run"]) == (1, not force)
        assert outcome["freed_mb"] == outcome["freed_bytes"] / 1e6 == 41e-6
        assert outcome["names"] == ["org/name"]
        assert outcome["kept"] == outcome["failed"] == []
