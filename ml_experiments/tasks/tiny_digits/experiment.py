"""The experiment that trains tiny-digits."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ml_experiments.experiment.base import Experiment, ExperimentConfig
from ml_experiments.experiment.context import current_run
from ml_experiments.serialization.files import write_atomically, write_json_atomically
from ml_experiments.tasks.tiny_digits.model_card import render_model_card

if TYPE_CHECKING:
    from ml_experiments.tasks.tiny_digits.training_stage import StagePlan

CLASS_PATH = "ml_experiments.tasks.tiny_digits.TrainTinyDigits"
RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "scikit-learn")
# the trained weights are the same for every value of these
_WITHOUT_EFFECT = {"checkpoint_every_steps", "log_every_steps", "judge_prompts", "output_name"}


class TinyDigitsConfig(ExperimentConfig):
    """How tiny-digits is trained; the defaults make the model that comes with the package."""

    vae_steps: int = Field(2000, ge=2, description="training steps of the autoencoder")
    vae_batch_size: int = Field(32, ge=1, description="pictures a step")
    vae_learning_rate: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    unet_steps: int = Field(4000, ge=2, description="training steps of text encoder and UNet")
    unet_batch_size: int = Field(64, ge=1, description="latents a step")
    unet_learning_rate: float = Field(1e-3, gt=0, description="peak of the one-cycle schedule")
    checkpoint_every_steps: int = Field(250, ge=1, description="steps between checkpoints")
    log_every_steps: int = Field(50, ge=1, description="steps between logged metrics")
    judge_prompts: int = Field(
        200, ge=2, description="prompts of known wordings to judge, and as many of unseen ones"
    )
    cpu_threads: int = Field(
        1,
        ge=1,
        description="threads that torch computes with; the networks gain little by more",
    )
    output_name: str = Field(
        "tiny-digits", pattern=r"^[A-Za-z0-9][\w.-]*$", description="the model folder's name"
    )


class TrainTinyDigits(Experiment[TinyDigitsConfig]):
    """Trains the tiny-digits pipeline, judges it, and leaves it as a folder of artifacts."""

    def run(self) -> dict[str, Any]:
        """Train, save and judge; resume from the run's checkpoints if there are any."""
        with _cpu_threads(self.config.cpu_threads):
            return self._run()

    def _run(self) -> dict[str, Any]:
        from ml_experiments.tasks.tiny_digits.autoencoder import encode, train_autoencoder
        from ml_experiments.tasks.tiny_digits.denoiser import train_denoiser
        from ml_experiments.tasks.tiny_digits.digits import load_split
        from ml_experiments.tasks.tiny_digits.evaluation import evaluate
        from ml_experiments.tasks.tiny_digits.pipeline_folder import save_pipeline
        from ml_experiments.tasks.tiny_digits.tokenizer import build_tokenizer

        run, config = current_run(), self.config
        device = run.device
        training, held_out = load_split()
        autoencoder, autoencoder_s = train_autoencoder(
            self._plan("autoencoder", config.vae_steps, config.vae_learning_rate),
            training,
            config.vae_batch_size,
            device,
        )
        tokenizer = build_tokenizer()
        denoiser = train_denoiser(
            self._plan("denoiser", config.unet_steps, config.unet_learning_rate),
            training,
            encode(autoencoder, training, device),
            tokenizer,
            config.unet_batch_size,
            device,
        )
        folder = run.output_dir / config.output_name
        save_pipeline(folder, autoencoder, denoiser, tokenizer)
        started = time.perf_counter()
        measured = evaluate(folder, training, held_out, config.judge_prompts, device)
        evaluation = {
            "command": training_command(config, run.seed),
            "seed": run.seed,
            "config": config.model_dump(),
            **measured,
            "training_s": {"autoencoder": autoencoder_s, "denoiser": denoiser.seconds},
            "judging_s": time.perf_counter() - started,
            "versions": {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        }
        write_json_atomically(folder / "evaluation.json", evaluation)
        write_atomically(folder / "README.md", render_model_card(evaluation).encode())
        run.log({**measured["known_wordings"], "frechet_distance": measured["frechet_distance"]})
        return {**evaluation, "model": folder}

    def _plan(self, name: str, steps: int, learning_rate: float) -> StagePlan:
        from ml_experiments.tasks.tiny_digits.training_stage import StagePlan

        return StagePlan(
            name=name,
            steps=steps,
            learning_rate=learning_rate,
            checkpoint_every_steps=self.config.checkpoint_every_steps,
            log_every_steps=self.config.log_every_steps,
            inputs={"seed": current_run().seed, **self.config.model_dump(exclude=_WITHOUT_EFFECT)},
        )


def training_command(config: TinyDigitsConfig, seed: int) -> str:
    """Return the command that trains with a config and a seed, naming only what isn't default."""
    changed = config.model_dump(exclude_defaults=True)
    overrides = [f"{name}={json.dumps(value)}" for name, value in changed.items()]
    return shlex.join(["ml-experiments", "run", CLASS_PATH, *overrides, "--seed", str(seed)])


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(count)  # also what rounding, and so the exact weights, depend on
    try:
        yield
    finally:
        torch.set_num_threads(previous)
