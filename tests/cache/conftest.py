"""A Hub on this machine, and a cache folder in the middle of files that must never change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub_cache import fingerprint
from tests.support.hub_server import HubServer, use_endpoint


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub on this machine, which pulls of this test call."""
    use_endpoint(hub_server.endpoint, monkeypatch)
    return hub_server


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own token and cache out of every test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-home"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-home" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Iterator[Path]:
    """A cache folder; the test fails if anything around it has changed."""
    around = tmp_path / "around"
    (around / "documents").mkdir(parents=True)
    (around / "documents" / "thesis.txt").write_text("years of work")
    (around / "models--org--name").mkdir()
    (around / "models--org--name" / "weights.safetensors").write_bytes(b"not in the cache")
    (around / "hub").mkdir()
    (around / "hub" / "config.json").write_text("{}")
    before = fingerprint(around)
    cache = around / "cache"
    cache.mkdir()
    yield cache
    after = {path: v for path, v in fingerprint(around).items() if not _is_in(path, cache)}
    assert after == before


def _is_in(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


@pytest.fixture
def hub_dir(cache_dir: Path) -> Path:
    return cache_dir / "huggingface" / "hub"
