"""How tiny-digits is trained: what its config changes, what it reports, how it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.errors import ConfigError
from ml_experiments.experiment.context import RunContext, set_current_run
from ml_experiments.runner.run import run_experiment
from ml_experiments.tasks.tiny_digits import TrainTinyDigits
from ml_experiments.tasks.tiny_digits.experiment import CLASS_PATH
from ml_experiments.tasks.tiny_digits.model_card import render_model_card

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

Config = TrainTinyDigits.Config
FEW_STEPS = {
    "vae_steps": 4,
    "vae_batch_size": 4,
    "unet_steps": 4,
    "unet_batch_size": 4,
    "checkpoint_every_steps": 2,
    "log_every_steps": 2,
    "judge_prompts": 2,
    "cpu_threads": 1,
}
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


class Interruption(BaseException):
    """What a test ends a training with, at a step of its choice."""


class Observed:
    """A run folder, and what a training in it reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: list[tuple[int | None, dict[str, Any]]] = []
        self.progress: list[tuple[float, float | None, str]] = []

    def train(
        self, *, seed: int = 0, stop: Callable[[str, float], bool] | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Train a few steps here; `stop(stage, step)` says when to interrupt."""

        def log(metrics: Mapping[str, Any], step: int | None) -> None:
            self.metrics.append((step, dict(metrics)))

        def progress(done: float, total: float | None, text: str) -> None:
            self.progress.append((done, total, text))
            if stop is not None and stop(text, done):
                raise Interruption

        self.folder.mkdir(parents=True, exist_ok=True)
        folders = (self.folder / "artifacts", self.folder / "checkpoints")
        context = RunContext("test", *folders, seed, log, progress)
        set_current_run(context)
        try:
            return TrainTinyDigits(Config(**{**FEW_STEPS, **changes})).run()
        finally:
            set_current_run(None)

    def steps(self, metric: str) -> list[int | None]:
        """The steps at which a metric was logged."""
        return [step for step, metrics in self.metrics if metric in metrics]

    def values(self, metric: str) -> list[float]:
        """The logged values of a metric."""
        return [metrics[metric] for _, metrics in self.metrics if metric in metrics]

    def weights(self, name: str = "tiny-digits") -> list[bytes]:
        """The weights of the trained model folder, as bytes."""
        return [(self.folder / "artifacts" / name / file).read_bytes() for file in WEIGHTS]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observed, dict[str, Any]]:
    observed = Observed(tmp_path_factory.mktemp("uninterrupted"))
    return observed, observed.train()


def test_training_leaves_a_loadable_model_with_its_measures_and_card(
    uninterrupted: tuple[Observed, dict[str, Any]],
) -> None:
    from ml_experiments.tasks.tiny_digits.pipeline_folder import load_pipeline

    observed, results = uninterrupted
    folder = results["model"]
    assert folder == observed.folder / "artifacts" / "tiny-digits"
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert {**evaluation, "model": results["model"]} == results
    assert (folder / "README.md").read_text(encoding="utf-8") == render_model_card(evaluation)
    assert results["config"] == Config(**FEW_STEPS).model_dump()
    assert results["prompts"] == 2
    assert results["weights_bytes"] == sum(len(weights) for weights in observed.weights())
    for wordings in ("known_wordings", "unseen_wordings"):
        assert set(results[wordings]) == {"digit_accuracy", "colour_accuracy"}
    assert results["training_s"]["autoencoder"] > 0
    assert results["training_s"]["denoiser"] > 0
    picture = load_pipeline(folder)("red seven", num_inference_steps=1).images[0]
    assert picture.size == (32, 32)


def test_training_reports_metrics_and_progress(
    uninterrupted: tuple[Observed, dict[str, Any]],
) -> None:
    observed, results = uninterrupted
    assert observed.steps("autoencoder_loss") == [2, 4]
    assert observed.steps("denoiser_loss") == [2, 4]
    assert observed.values("digit_accuracy") == [results["known_wordings"]["digit_accuracy"]]
    for stage in ("autoencoder", "denoiser"):
        said = [(done, total) for done, total, text in observed.progress if stage in text]
        assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert observed.progress[-1] == (4, 4, "judging")


@pytest.mark.parametrize(("stage", "step"), [("autoencoder", 3), ("denoiser", 3)])
def test_resumed_training_gives_the_very_weights_of_an_uninterrupted_one(
    uninterrupted: tuple[Observed, dict[str, Any]], tmp_path: Path, stage: str, step: int
) -> None:
    resumed = Observed(tmp_path)
    with pytest.raises(Interruption):
        resumed.train(stop=lambda text, done: stage in text and done == step)
    resumed.progress.clear()
    results = resumed.train()
    again = [done for done, _, text in resumed.progress if stage in text]
    assert again == [3, 4]  # from the checkpoint of step 2
    observed, expected = uninterrupted
    assert resumed.weights() == observed.weights()
    for measure in ("known_wordings", "reconstruction_mse", "frechet_distance"):
        assert results[measure] == expected[measure]


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    observed = Observed(tmp_path)
    with pytest.raises(Interruption):
        observed.train(stop=lambda _, done: done == 2)
    for change in ({"vae_learning_rate": 0.1}, {"seed": 1}):
        with pytest.raises(ConfigError, match=r"autoencoder\.pt was made with .*resume with the"):
            observed.train(**change)


def test_training_that_diverges_ends_with_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"autoencoder is nan at step .*learning rate"):
        Observed(tmp_path).train(vae_learning_rate=1e30)


@pytest.mark.parametrize(
    ("changes", "expected_steps"),
    [
        ({}, [2, 4]),
        ({"log_every_steps": 1}, [1, 2, 3, 4]),
        ({"vae_steps": 5}, [2, 4, 5]),
        ({"vae_batch_size": 8}, [2, 4]),
        ({"vae_learning_rate": 0.1}, [2, 4]),
        ({"seed": 1}, [2, 4]),
    ],
)
def test_autoencoder_fields_and_seed_change_its_training(
    tmp_path: Path, changes: dict[str, Any], expected_steps: list[int]
) -> None:
    def losses(folder: Path, changes: dict[str, Any]) -> tuple[list[int | None], list[float]]:
        observed = Observed(folder)
        with pytest.raises(Interruption):
            observed.train(stop=lambda _, done: done == changes.get("vae_steps", 4), **changes)
        return observed.steps("autoencoder_loss"), observed.values("autoencoder_loss")

    _, default = losses(tmp_path / "default", {})
    steps, changed = losses(tmp_path / "changed", changes)
    assert steps == expected_steps
    only_reporting = set(changes) <= {"log_every_steps"}
    assert (changed[-1] == default[-1]) is only_reporting


@pytest.mark.parametrize(
    ("changes", "expected_steps"),
    [
        ({"unet_steps": 5}, [2, 4, 5]),
        ({"unet_batch_size": 8}, [2, 4]),
        ({"unet_learning_rate": 0.1}, [2, 4]),
    ],
)
def test_unet_fields_change_its_training(
    uninterrupted: tuple[Observed, dict[str, Any]],
    tmp_path: Path,
    changes: dict[str, Any],
    expected_steps: list[int],
) -> None:
    observed = Observed(tmp_path)
    with pytest.raises(Interruption):
        observed.train(
            stop=lambda text, done: "denoiser" in text and done == changes.get("unet_steps", 4),
            **changes,
        )
    assert observed.steps("denoiser_loss") == expected_steps
    assert observed.values("denoiser_loss")[-1] != uninterrupted[0].values("denoiser_loss")[-1]


def test_checkpoints_are_written_at_the_interval_and_after_the_last_step(tmp_path: Path) -> None:
    import torch

    checkpoint = tmp_path / "checkpoints" / "autoencoder.pt"
    saved: list[int | None] = []

    def stop(_: str, done: float) -> bool:
        exists = checkpoint.exists()
        saved.append(torch.load(checkpoint, weights_only=True)["done"] if exists else None)
        return done == 4

    with pytest.raises(Interruption):
        Observed(tmp_path).train(stop=stop, checkpoint_every_steps=3)
    assert saved == [None, None, 3, 4]
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_cpu_threads_are_those_asked_for_while_training_and_as_before_after(
    tmp_path: Path,
) -> None:
    import torch

    before = torch.get_num_threads()
    during: list[int] = []

    def stop(_: str, __: float) -> bool:
        during.append(torch.get_num_threads())
        return True

    for count in (1, 2):
        with pytest.raises(Interruption):
            Observed(tmp_path / str(count)).train(stop=stop, cpu_threads=count)
    assert during == [1, 2]
    assert torch.get_num_threads() == before


def test_training_runs_like_any_other_experiment(tmp_path: Path) -> None:
    config = {**FEW_STEPS, "output_name": "mine", "judge_prompts": 3}
    result = run_experiment(CLASS_PATH, config, seed=5, runs_dir=tmp_path).raise_for_error()
    assert result.results["seed"] == 5
    assert result.results["prompts"] == 3
    paths = {artifact.path for artifact in result.artifacts}
    assert {f"artifacts/mine/{file}" for file in WEIGHTS} <= paths
    assert {"artifacts/mine/README.md", "artifacts/mine/evaluation.json"} <= paths
