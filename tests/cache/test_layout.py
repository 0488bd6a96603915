"""The folders of a cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments.cache.layout import find_layout
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.errors import CacheError
from tests.support.hub_cache import (
    commit_of,
    write_repo,
)

LAYOUT = """
from ml_experiments.cache.layout import find_layout, this_machine
layout = find_layout(this_machine())
print(layout.root, layout.hub, layout.uses, layout.checkpoints, sep="\\n")
"""


def hub_of(cache_dir: Path) -> Path:
    return cache_dir / "huggingface" / "hub"


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_an_empty_or_missing_cache_holds_nothing(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "cache"
    if kind == "empty":
        folder.mkdir()
    found = scan(folder)
    assert (found.items, found.leftovers, found.unrecognised, found.bytes) == ((), (), (), 0)
    assert (found.disk_total is None) == (kind == "missing")
    assert folder.exists() == (kind == "empty")


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_an_error(path: str) -> None:
    with pytest.raises(CacheError, match="empty"):
        scan(path)


def test_a_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="is not a folder"):
        scan(tmp_path / "file")


def test_the_root_may_be_an_hf_home_a_hub_folder_or_a_torch_home(cache_dir: Path) -> None:
    repo = write_repo(hub_of(cache_dir), "org/name", {commit_of("a"): {"a": b"x"}})
    checkpoints = cache_dir / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "net-12345678.pth").write_bytes(b"x")
    assert [i.name for i in scan(cache_dir).items] == ["net-12345678.pth", "org/name"]
    assert [i.path for i in scan(cache_dir / "huggingface").items] == [repo]
    assert [i.path for i in scan(repo.parent).items] == [repo]
    assert [i.kind for i in scan(cache_dir / "torch").items] == ["torch"]
    assert find_layout(cache_dir / "torch").hub is None


@pytest.mark.parametrize(
    ("variables", "root", "hub", "checkpoints"),
    [
        ({"HF_HOME": "x/huggingface"}, "x", "x/huggingface/hub", "x/torch/hub/checkpoints"),
        ({"HF_HOME": "x/models"}, "x/models", "x/models/hub", None),
        ({"HF_HOME": "x", "HF_HUB_CACHE": "y"}, "y", "y", None),
        ({"HF_HOME": "x", "HF_HUB_CACHE": "x/hub"}, "x", "x/hub", None),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_this_machines_folders_are_where_the_library_has_them_be_they_empty_or_missing(
    tmp_path: Path,
    variables: dict[str, str],
    root: str,
    hub: str,
    checkpoints: str | None,
    is_there: bool,
) -> None:
    environment = {name: str(tmp_path / value) for name, value in variables.items()}
    if is_there:
        for folder in environment.values():
            Path(folder).mkdir(parents=True)
    code = [sys.executable, "-c", LAYOUT]
    done = subprocess.run(
        code, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    found = done.stdout.split()
    uses = Path(hub if root == hub else Path(hub).parent) / ".ml-experiments" / "uses"
    expected = [root, hub, uses, checkpoints]
    assert found == [str(p and tmp_path / p) for p in expected]
