"""A run's manifest names the exact cached revisions that it used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import Experiment, ExperimentConfig, LocalBackend, RunResult, run_experiment
from ml_experiments.experiment.hub_models import named_models
from ml_experiments.runs.reports.cache_stats import read_stats
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow

REPO = "org/weights"


class Loads(Experiment):
    """Downloads a model in setup(), as an experiment that stays warm does."""

    class Config(ExperimentConfig):
        model_name: str = REPO
        steps: int = 1

    setup_fields = ("model_name",)

    def setup(self) -> None:
        from huggingface_hub import hf_hub_download

        self.file = hf_hub_download(self.config.model_name, "config.json")

    def run(self) -> int:
        return len(Path(self.file).read_text())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo(REPO, {"config.json": b'{"a": 1}'})
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache" / "huggingface"))
        yield server


def models_of(result: RunResult) -> list[dict[str, Any]]:
    assert result.run_dir is not None
    assert result.status == "success", result.error
    manifest = json.loads((result.run_dir / "manifest.json").read_text())
    found: list[dict[str, Any]] = manifest.get("cached_models", [])
    return found


def test_downloaded_cached_and_kept_in_a_warm_worker(hub: HubServer, runs_dir: Path) -> None:
    with LocalBackend() as backend:
        [first] = models_of(run_experiment(Loads, backend=backend))
        [warm] = models_of(run_experiment(Loads, {"steps": 2}, backend=backend))
        assert models_of(run_experiment(plain, backend=backend)) == []
    [later] = models_of(run_experiment(Loads))
    assert (first["repo_id"], first["kind"], first["hit"]) == (REPO, "model", False)
    assert len(first["revision"]) == 40
    assert warm == later == {**first, "hit": True}
    assert read_stats(runs_dir).to_dict()["hits"] == 2


def test_a_run_without_models_names_none() -> None:
    assert models_of(run_experiment(plain)) == []


def plain(config: dict[str, Any]) -> int:
    return 1


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: huggingface_hub reads its variables when it's imported."""
    return subprocess.run(
        [sys.executable, "-m", "ml_experiments", "run", f"{__file__}:Loads", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_prefetch_downloads_before_the_run_starts(hub: HubServer, runs_dir: Path) -> None:
    done = run_command("--prefetch", "--json")
    assert done.returncode == 0, done.stderr
    assert f"downloading {REPO}" in done.stderr
    (manifest,) = runs_dir.glob("*/manifest.json")
    [model] = json.loads(manifest.read_text())["cached_models"]
    assert model["hit"] is True


def test_prefetch_of_a_missing_model_starts_nothing(hub: HubServer, runs_dir: Path) -> None:
    done = run_command("--prefetch", "model_name=org/none")
    assert done.returncode == 2
    assert "org/none" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(runs_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "models"),
    [
        ({"model_name": "org/name"}, ("org/name",)),
        ({"model_name": "org/name", "revision": "v1"}, ("org/name@v1",)),
        ({"teacher_model_name": "a/b", "student_model_name": "c/d"}, ("a/b", "c/d")),
        ({"model_name": "tiny"}, ()),
        ({"model_name": "./folder/x/y"}, ()),
        ({"model_name": 3, "name": "org/name"}, ()),
    ],
)
def test_models_are_named_by_convention(values: dict[str, Any], models: tuple[str, ...]) -> None:
    assert named_models(plain, values, values) == (models, ())


def test_an_experiment_can_say_itself_which_models_it_needs() -> None:
    config = TextToImageExperiment.Config(model_name="org/name", prompt="x", revision="v2")
    assert named_models(TextToImageExperiment, config, {}) == (("org/name@v2",), ())
    own = TextToImageExperiment.Config(prompt="x")
    assert named_models(TextToImageExperiment, own, own.model_dump()) == ((), ())


@pytest.mark.parametrize(
    ("values", "hub", "local"),
    [
        ({"model_name": "./mine"}, (), ("mine",)),
        ({"model_name": "mine.safetensors", "base_model": "org/base"}, ("org/base",), ("mine.*",)),
        ({"model_name": "a/mine.CKPT", "base_model": "b/"}, (), ("a/mine.CKPT", "b")),
        ({"model_name": "org/name/mine.safetensors"}, (), ()),
        ({"model_name": "a/b/c"}, (), ("a/b/c",)),
        ({"model_name": "org/name", "lora": "ink.safetensors"}, ("org/name",), ("ink.*",)),
        ({"loras": [{"path": "org/name"}, {"path": "org/n/f.safetensors"}]}, (), ()),
        ({"textual_inversions": [{"path": "~nobody-here/x"}]}, (), ("~nobody-here/x",)),
        ({"model_name": "x" * 5000 + "/y", "lora": "\0/a"}, ("x*/y", "*"), ()),
        ({"model_name": "tiny-digits", "lora": "here"}, (), ("here",)),
    ],
    ids=str,
)
def test_paths_are_told_from_names_on_the_hub(
    values: dict[str, Any],
    hub: tuple[str, ...],
    local: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    config = TextToImageExperiment.Config(prompt="x", **values)
    named = named_models(TextToImageExperiment, config, {})
    assert len(named.local) == len(local), named
    for found, pattern in zip(named.local, local, strict=True):
        assert fnmatch(found, str(tmp_path / pattern)), found
    assert all(any(fnmatch(name, pattern) for pattern in hub) for name in named.hub), named
    assert bool(named.hub) is bool(hub)
