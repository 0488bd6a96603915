"""The training of text encoder and UNet together: latents from noise, as a prompt says."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from ml_experiments.tasks.tiny_digits.digits import Digits
from ml_experiments.tasks.tiny_digits.networks import (
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from ml_experiments.tasks.tiny_digits.prompts import COLOUR_NAMES, draw_training_prompt
from ml_experiments.tasks.tiny_digits.training_stage import (
    Losses,
    StagePlan,
    TrainingStage,
    derive_seed,
)

EMPTY_PROMPT_SHARE = 0.1  # what classifier-free guidance compares with
AVERAGE_DECAY = 0.999
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Denoiser:
    """A trained text encoder and UNet, and the seconds that their training took."""

    text_encoder: Any
    unet: Any
    seconds: float


def train_denoiser(
    plan: StagePlan,
    digits: Digits,
    latents: torch.Tensor,
    tokenizer: Any,
    batch_size: int,
    device: str,
) -> Denoiser:
    """Train text encoder and UNet on the latents (digits, colours, 4, 8, 8) of digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.inputs["seed"], "denoiser weights"))
        text_encoder = build_text_encoder(tokenizer)
        unet = build_unet()
    networks = torch.nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    networks.to(device, memory_format=torch.channels_last)
    stage = TrainingStage(plan, networks, average_decay=AVERAGE_DECAY, gradient_norm=GRADIENT_NORM)
    scheduler = build_scheduler()
    noise_levels = scheduler.config.num_train_timesteps

    def compute_losses(generator: torch.Generator) -> Losses:
        which = torch.randint(len(latents), (batch_size,), generator=generator)
        colour = torch.randint(len(COLOUR_NAMES), (batch_size,), generator=generator)
        prompts = _draw_prompts(digits.labels[which.numpy()].tolist(), colour.tolist(), generator)
        clean = latents[which, colour]
        noise = torch.randn(clean.shape, generator=generator)
        level = torch.randint(noise_levels, (batch_size,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, level).to(device)
        velocity = scheduler.get_velocity(clean, noise, level).to(device)
        text = text_encoder(_tokenize(tokenizer, prompts).to(device)).last_hidden_state
        predicted = unet(noisy, level.to(device), text).sample
        return {"loss": torch.nn.functional.mse_loss(predicted, velocity)}

    trained = stage.train(compute_losses)
    return Denoiser(trained["text_encoder"], trained["unet"], stage.seconds)


def _draw_prompts(digits: list[int], colours: list[int], generator: torch.Generator) -> list[str]:
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    return [
        ""
        if rng.random() < EMPTY_PROMPT_SHARE
        else draw_training_prompt(rng, digit, COLOUR_NAMES[colour])
        for digit, colour in zip(digits, colours, strict=True)
    ]


def _tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    # as StableDiffusionPipeline does: padded to the full length, without an attention mask
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
