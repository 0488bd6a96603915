"""The trained networks as a folder that diffusers loads like any Stable Diffusion model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from ml_experiments.tasks.tiny_digits.denoiser import Denoiser
from ml_experiments.tasks.tiny_digits.networks import build_scheduler


def save_pipeline(folder: Path, autoencoder: Any, denoiser: Denoiser, tokenizer: Any) -> None:
    """Write a `StableDiffusionPipeline` folder: VAE and UNet in float16, text encoder in float32.

    The networks are moved to the CPU and to those types. A folder of the same name is replaced.
    """
    for network in (autoencoder, denoiser.unet, denoiser.text_encoder):
        network.to("cpu", memory_format=torch.contiguous_format)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = folder.with_name(f".{folder.name}.partial")
    for stale in (partial, folder):
        if stale.exists():
            shutil.rmtree(stale)
    pipeline.save_pretrained(partial)
    partial.rename(folder)


def load_pipeline(folder: Path, device: str = "cpu") -> Any:
    """Return the pipeline of a folder, in float32 and without a progress bar."""
    # without dtype, text encoder and UNet would differ in type, and meet in one product
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_bytes(folder: Path) -> int:
    """Return the size of a folder's weights."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
