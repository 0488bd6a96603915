"""The autoencoder's training: pixels to latents and back."""

from __future__ import annotations

from typing import Any

import torch

from ml_experiments.tasks.tiny_digits.digits import Digits, palette
from ml_experiments.tasks.tiny_digits.networks import LATENT_CHANNELS, build_autoencoder
from ml_experiments.tasks.tiny_digits.training_stage import (
    Losses,
    StagePlan,
    TrainingStage,
    derive_seed,
)

ABSOLUTE_ERROR_WEIGHT = 0.2
DIVERGENCE_WEIGHT = 1e-4  # 1e-3 collapses latent channels
ENCODE_BATCH = 256


def train_autoencoder(
    plan: StagePlan, digits: Digits, batch_size: int, device: str
) -> tuple[Any, float]:
    """Train the autoencoder and scale its latents to mean 0 and spread 1.

    Returns:
        The autoencoder, and the seconds that its training took.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.inputs["seed"], "autoencoder weights"))
        network = build_autoencoder().to(device, memory_format=torch.channels_last)
    stage = TrainingStage(plan, network)
    ink, colours = torch.from_numpy(digits.ink), torch.from_numpy(palette())

    def compute_losses(generator: torch.Generator) -> Losses:
        which = torch.randint(len(ink), (batch_size,), generator=generator)
        colour = torch.randint(len(colours), (batch_size,), generator=generator)
        images = paint(ink[which], colours[colour]).to(device)
        posterior = network.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = network.decode(posterior.mean + posterior.std * noise).sample
        squared = torch.nn.functional.mse_loss(decoded, images)
        absolute = torch.nn.functional.l1_loss(decoded, images)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = squared + ABSOLUTE_ERROR_WEIGHT * absolute + DIVERGENCE_WEIGHT * divergence
        return {"loss": loss, "squared_error": squared, "divergence": divergence}

    trained = stage.train(compute_losses)
    _standardise_latents(trained, encode(trained, digits, device))
    return trained, stage.seconds


def paint(ink: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Return pictures from -1 to 1, (n, 3, 32, 32), of ink (n, 32, 32) in colours (n, 3)."""
    return ink[:, None] * colours[:, :, None, None] * 2 - 1


def encode(autoencoder: Any, digits: Digits, device: str) -> torch.Tensor:
    """Return the latents of every digit in every colour, (digits, colours, 4, 8, 8)."""
    colours = torch.from_numpy(palette())
    ink = torch.from_numpy(digits.ink)
    images = paint(ink.repeat_interleave(len(colours), 0), colours.repeat(len(ink), 1))
    with torch.no_grad():
        latents = [
            autoencoder.encode(batch.to(device)).latent_dist.mean.cpu()
            for batch in images.split(ENCODE_BATCH)
        ]
    return torch.cat(latents).unflatten(0, (len(ink), len(colours)))


def _standardise_latents(autoencoder: Any, latents: torch.Tensor) -> None:
    """Fold the latents' mean and spread into the 1x1 convolutions on either side of them.

    The pipeline's only scaling of latents, `scaling_factor`, is one number; this is one per
    channel, and leaves that number at 1.
    """
    by_channel = latents.flatten(0, 1).transpose(0, 1).flatten(1)
    mean, spread = (x.to(autoencoder.device) for x in (by_channel.mean(1), by_channel.std(1)))
    into, out_of = autoencoder.quant_conv, autoencoder.post_quant_conv
    means, log_variances = slice(LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    with torch.no_grad():
        into.weight[means] /= spread[:, None, None, None]
        into.bias[means] = (into.bias[means] - mean) / spread
        into.bias[log_variances] -= 2 * spread.log()
        out_of.bias += out_of.weight[:, :, 0, 0] @ mean
        out_of.weight *= spread[None, :, None, None]
