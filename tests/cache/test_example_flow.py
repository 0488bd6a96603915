"""`examples/cache_management.py` on a cache volume that holds something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from ml_experiments.backends.modal.cache import call_cache_operation
from modal_emulator import Emulator
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples" / "cache_management.py"


@pytest.fixture
def filled(empty_cache: Emulator) -> Iterator[Emulator]:
    with HubServer() as hub:
        hub.add_repo("example/a", {"model.bin": b"w" * 2_000_000})
        hub.add_repo("example/rows", {"rows.csv": b"1"}, kind="dataset")
        modal.Secret.objects.create("huggingface-secret", hub.environment())
        for name, kind in (("example/a", "model"), ("example/rows", "dataset")):
            call_cache_operation("pull", {"name": name, "kind": kind})
        modal.Secret.objects.delete("huggingface-secret")
    yield empty_cache
    clear_all()


def clear_all() -> None:
    call_cache_operation("clear", {"kinds": ("model", "dataset"), "force": True})


def test_it_lists_verifies_shows_and_clears(filled: Emulator, tmp_path: Path) -> None:
    def run(*options: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), *options],
            env={**os.environ, **filled.environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    kept = "  kept: example/rows is a dataset; clearing it takes kind dataset"
    assert run("--verify") == ["1 models: example/a", "2 files checked, 0 wrong"]
    assert run("--clear", "example/*") == [
        "1 models: example/a",
        "  example/a",
        kept,
        "would free 2.00 MB in 1 models",
        "nothing was deleted: add --force",
    ]
    assert run("--clear", "example/*", "--force")[1:] == [
        "  example/a",
        kept,
        "freed 2.00 MB in 1 models",
    ]
    assert run() == ["0 models: none"]
