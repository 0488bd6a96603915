"""docs/cache.md: its commands act on a cache and a Hub like those that it shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doc_pages import follow
from tests.support.hub_cache import commit_of, set_age, write_repo
from tests.support.hub_server import HubServer

PAGE = Path(__file__).parents[2] / "docs" / "cache.md"


def pipeline(index_bytes: int, vae_bytes: int) -> dict[str, bytes]:
    return {
        "model_index.json": b" " * index_bytes,
        "unet/diffusion_pytorch_model.safetensors": b"u" * 2_500_000,
        "vae/diffusion_pytorch_model.safetensors": b"v" * vae_bytes,
    }


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo(
            "acme/tiny-digits", pipeline(400, 350_000), revisions={"v2": pipeline(600, 360_000)}
        )
        big = {"model_index.json": b" " * 400, "w.safetensors": b"b" * 40_000_000}
        server.add_repo("acme/big", big)
        server.add_repo("meta/llama", {"model.safetensors": b"w"}, gated=True)
        server.add_repo(
            "acme/huge", {"a.safetensors": b"w"}, declared_sizes={"a.safetensors": 10**15}
        )
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder whose cache holds a model that was used 41 days ago, and a dataset."""
    folder = tmp_path / "home"
    hub_dir = folder / ".cache" / "huggingface" / "hub"
    model = {commit_of("large"): {"model.safetensors": b"s" * 9_000_000}}
    set_age(write_repo(hub_dir, "acme/sdxl-small", model), days=41)
    write_repo(
        hub_dir, "acme/prompts", {commit_of("p"): {"rows.csv": b"r" * 80_000}}, kind="dataset"
    )
    return folder


@pytest.mark.slow
def test_what_the_page_on_the_cache_shows_is_what_happens(
    tmp_path: Path, home: Path, hub: HubServer
) -> None:
    dropped = ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "ML_EXPERIMENTS_RUNS_DIR", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"HOME": str(home), "PATH": path, "COLUMNS": "120"}
    follow(PAGE, tmp_path, {**kept, **hub.environment(), **own})
