"""Files of a run are loaded, and nothing outside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ml_experiments.errors import RunFolderError
from ml_experiments.serialization.loading import load_file
from tests.support.values import NotPlain, travel


@pytest.mark.parametrize(
    "path",
    ["../secret.npy", "artifacts/../../secret.npy", "/etc/passwd", "", None, 5, "a\\..\\b", "C:/x"],
)
def test_a_descriptor_cannot_lead_out_of_the_run_folder(path: Any, artifacts: Path) -> None:
    np.save(artifacts.parent.parent / "secret.npy", np.ones(1))
    with pytest.raises(RunFolderError, match=r"not a path inside|has no path"):
        load_file({"$type": "ndarray", "path": path}, artifacts.parent)


@pytest.mark.parametrize("kind", ["ndarray", "file", "bytes"])
def test_a_link_cannot_lead_out_of_the_run_folder(kind: str, artifacts: Path) -> None:
    np.save(artifacts.parent.parent / "secret.npy", np.ones(1))
    (artifacts / "x.npy").symlink_to(artifacts.parent.parent / "secret.npy")
    (artifacts / "up").symlink_to(artifacts.parent.parent)
    for path in ("artifacts/x.npy", "artifacts/up/secret.npy"):
        with pytest.raises(RunFolderError, match="leaves the run folder"):
            load_file({"$type": kind, "path": path, "size_bytes": 136}, artifacts.parent)


def test_a_pickle_is_never_loaded(artifacts: Path) -> None:
    np.save(artifacts / "x.npy", np.array([NotPlain()], dtype=object), allow_pickle=True)
    with pytest.raises(RunFolderError, match="damaged"):
        load_file({"$type": "ndarray", "path": "artifacts/x.npy"}, artifacts.parent)


@pytest.mark.parametrize(
    "value",
    [np.ones(100), Image.effect_noise((20, 20), 50), bytes(5000), pd.DataFrame({"a": [1, 2, 3]})],
    ids=["array", "image", "bytes", "table"],
)
def test_a_damaged_file_is_an_error_that_names_it(value: Any, artifacts: Path) -> None:
    descriptor = travel({"x": value}, artifacts)["x"]
    file = artifacts.parent / descriptor["path"]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RunFolderError, match="damaged") as caught:
        load_file(descriptor, artifacts.parent)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(RunFolderError, match="missing"):
        load_file(descriptor, artifacts.parent)


def test_loading_without_a_run_folder_or_a_descriptor_says_so(artifacts: Path) -> None:
    descriptor = travel(np.ones(1), artifacts)
    with pytest.raises(RunFolderError, match="not on this machine"):
        load_file(descriptor, None)
    for wrong in ({}, {"$type": "unportable"}, {"$type": ["x"]}, {"a": 1}):
        with pytest.raises(RunFolderError, match="not the descriptor of a file"):
            load_file(wrong, artifacts.parent)
