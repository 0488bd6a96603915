"""`ml-experiments cache` on the volume: real containers of the emulator, a real Hub download."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from ml_experiments.backends.modal.cache import call_cache_operation
from ml_experiments.backends.modal.mounts import CACHE_VOLUME
from ml_experiments.cache.pull.progress import PullProgress
from ml_experiments.core import modal_runner
from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.hub_server import HubServer
from tests.support.image_builds import needs_uv, own_layer_cache

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(modal_emulator: Emulator) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("org/one", {"config.json": b"{}", "model.bin": b"x" * 3_000_000})
        server.add_repo("org/closed", {"config.json": b"{}"}, gated=True)
        # containers get the address of the Hub as they would get a token
        modal.Secret.objects.create("huggingface-secret", server.environment())
        yield server
        modal.Secret.objects.delete("huggingface-secret", allow_missing=True)


def call(emulator: Emulator, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ml_experiments", "cache", *arguments],
        env={**os.environ, **emulator.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def answer(emulator: Emulator, *arguments: str) -> Any:
    done = call(emulator, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(found: Any) -> list[str]:
    return [item["name"] for item in found["items"]]


def test_pull_list_clear_list(empty_cache: Emulator, hub: HubServer) -> None:
    pull_list_clear_list(empty_cache)


@needs_uv
def test_the_commands_run_in_the_image_that_is_built_for_them(tmp_path: Path) -> None:
    with (
        own_layer_cache(tmp_path),
        Emulator(images="build") as emulator,
        connected(emulator),
        HubServer() as server,
    ):
        server.add_repo("org/one", {"config.json": b"{}", "model.bin": b"x" * 3_000_000})
        modal.Secret.objects.create("huggingface-secret", server.environment())
        pull_list_clear_list(emulator)


def pull_list_clear_list(modal_emulator: Emulator) -> None:
    pulled = answer(modal_emulator, "pull", "org/one")
    assert pulled["name"] == "org/one"
    assert names(answer(modal_emulator, "list")) == ["org/one"]
    [item] = answer(modal_emulator, "show", "org/one")["items"]
    assert item["bytes"] >= 3_000_000
    assert answer(modal_emulator, "verify")["problems"] == []
    plan = answer(modal_emulator, "clear", "org/*", "--dry-run")
    assert (plan["names"], plan["dry_run"]) == (["org/one"], True)
    assert names(answer(modal_emulator, "list")) == ["org/one"]
    outcome = answer(modal_emulator, "clear", "org/*", "--yes")
    assert outcome["names"] == plan["names"]
    assert outcome["freed_mb"] == plan["freed_mb"]
    assert names(answer(modal_emulator, "list")) == []


LOADS = """
from huggingface_hub import hf_hub_download

class Loads:
    def __init__(self, config):
        self.config = config

    def run(self):
        return hf_hub_download(self.config["model_name"], "config.json")
"""


def test_prefetch_downloads_without_a_gpu_before_the_run(
    modal_emulator: Emulator, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "loads.py").write_text(LOADS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ml_experiments", "run", "loads.Loads"),
            *("model_name=org/one", "--gpu", "t4", "--prefetch", "--json"),
        ],
        env={**os.environ, **modal_emulator.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["results"].startswith("/cache/huggingface/hub/models--org--one/snapshots/")
    manifest = json.loads((Path(result["run_dir"]) / "manifest.json").read_text())
    [model] = manifest["cached_models"]
    assert (model["repo_id"], model["hit"]) == ("org/one", True)
    pull, run = modal_emulator.calls("stream_cache_operation")[-1], modal_emulator.calls()[-1]
    functions = {each.function_id: each for each in modal_emulator.functions()}
    assert functions[pull.function_id].gpus == ()
    assert functions[run.function_id].gpus == ("T4",)


def test_a_pull_tells_how_far_it_is(modal_emulator: Emulator, hub: HubServer) -> None:
    hub.add_repo("org/live", {"model.bin": os.urandom(25_000_000)})
    seen: list[PullProgress] = []
    call_cache_operation("pull", {"name": "org/live"}, seen.append)
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(set(done))
    assert seen[-1] == PullProgress(25_000_000, 25_000_000)
    assert answer(modal_emulator, "clear", "org/live", "--yes")["names"] == ["org/live"]


def test_a_download_that_failed_at_its_start_is_no_cached_model(modal_emulator: Emulator) -> None:
    volume = modal.Volume.from_name(CACHE_VOLUME)
    repo = "/huggingface/hub/models--org--refused"
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"0" * 40), f"{repo}/refs/main")
    assert names(answer(modal_emulator, "list", "org/refused")) == ["org/refused"]
    with modal_runner.app.run():
        assert "org/refused" not in modal_runner.list_cached_models.remote()
    volume.remove_file(repo, recursive=True)


def test_a_gated_model_is_told_at_once(modal_emulator: Emulator, hub: HubServer) -> None:
    done = call(modal_emulator, "pull", "org/closed")
    assert done.returncode == 2
    assert "gated" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pull_whose_connection_was_lost_keeps_its_complete_files_for_another_container(
    modal_emulator: Emulator, hub: HubServer
) -> None:
    hub.add_repo("org/large", {"config.json": b"{}", "model.bin": b"w" * 25_000_000})
    hub.break_after("model.bin", 22_000_000, times=1000)
    lost = call(modal_emulator, "pull", "org/large")
    assert lost.returncode == 2
    assert "the same command fetches the others" in lost.stderr
    hub.mend("model.bin")
    outcome = answer(modal_emulator, "pull", "org/large")
    assert (outcome["downloaded_files"], outcome["downloaded_bytes"]) == (1, 25_000_000)
    # other tests look at all that is in the volume
    assert answer(modal_emulator, "clear", "org/large", "--yes")["names"] == ["org/large"]


def test_no_gpu_is_asked_for(modal_emulator: Emulator, hub: HubServer) -> None:
    answer(modal_emulator, "list")
    function = modal_emulator.functions("stream_cache_operation")[-1]
    assert function.gpus == ()
    assert set(function.volumes) == {"/cache"}


def test_a_folder_of_this_machine_needs_local(modal_emulator: Emulator) -> None:
    done = call(modal_emulator, "list", "--cache-dir", "/somewhere")
    assert done.returncode == 2
    assert "--local" in done.stderr
