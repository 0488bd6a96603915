"""What a trained pipeline is worth: measured on the saved folder, as its users load it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from ml_experiments.experiment.context import current_run
from ml_experiments.tasks.tiny_digits.autoencoder import paint
from ml_experiments.tasks.tiny_digits.digits import Digits, palette
from ml_experiments.tasks.tiny_digits.judge import (
    Features,
    Judge,
    Pixels,
    ink_features,
    picture_features,
    read_colours,
)
from ml_experiments.tasks.tiny_digits.model_card import RECOMMENDED_SETTINGS
from ml_experiments.tasks.tiny_digits.networks import count_parameters
from ml_experiments.tasks.tiny_digits.pipeline_folder import load_pipeline, weights_bytes
from ml_experiments.tasks.tiny_digits.prompts import COLOURS, JudgedPrompt, judged_prompts

BATCH_SIZE = 20


def evaluate(
    folder: Path, training: Digits, held_out: Digits, prompt_count: int, device: str
) -> dict[str, Any]:
    """Return the measures of a pipeline folder.

    Args:
        prompt_count: How many prompts of known wordings, and again of unseen ones.
    """
    pipeline = load_pipeline(folder, device)
    judge = Judge.train(held_out)
    known = judged_prompts(prompt_count, unseen=False)
    unseen = judged_prompts(prompt_count, unseen=True)
    started = time.perf_counter()
    pictures = generate(pipeline, [prompt.text for prompt in (*known, *unseen)], report=True)
    seconds = time.perf_counter() - started
    of_known, of_unseen = pictures[:prompt_count], pictures[prompt_count:]
    return {
        "prompts": prompt_count,
        "inference_steps": RECOMMENDED_SETTINGS["num_inference_steps"],
        "guidance_scale": RECOMMENDED_SETTINGS["guidance_scale"],
        "known_wordings": measure_accuracy(judge, known, of_known),
        "unseen_wordings": measure_accuracy(judge, unseen, of_unseen),
        "judge_accuracy": judge.accuracy(training),
        "reconstruction_mse": _reconstruction_mse(pipeline.vae, held_out, device),
        "frechet_distance": judge.frechet_distance(of_known),
        "nearest_training_digit": {
            "generated": _nearest_distance(picture_features(of_known), training),
            "held_out": _nearest_distance(judge.reference, training),
        },
        "parameters": {
            "autoencoder": count_parameters(pipeline.vae),
            "unet": count_parameters(pipeline.unet),
            "text_encoder": count_parameters(pipeline.text_encoder),
        },
        "tokens": len(pipeline.tokenizer),
        "weights_bytes": weights_bytes(folder),
        "generation_s_per_image": seconds / len(pictures),
    }


def generate(
    pipeline: Any, prompts: Sequence[str], *, first_seed: int = 0, report: bool = False
) -> Pixels:
    """Return one picture a prompt, (n, 32, 32, 3); picture i has the seed `first_seed + i`.

    Args:
        report: Tell the current run how far it is.
    """
    pictures: list[Pixels] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        seeds = range(first_seed + start, first_seed + start + len(batch))
        drawn = pipeline(
            list(batch),
            **RECOMMENDED_SETTINGS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        pictures.append(np.round(drawn * 255).astype(np.uint8))
        if report:
            current_run().progress(start + len(batch), len(prompts), text="judging")
    return np.concatenate(pictures)


def measure_accuracy(
    judge: Judge, prompts: Sequence[JudgedPrompt], pictures: Pixels
) -> dict[str, float]:
    """Return the shares of pictures with the digit, and with the colour, that was asked for."""
    digits, colours = judge.read_digits(pictures), read_colours(pictures)
    right_digits = [d == p.digit for d, p in zip(digits, prompts, strict=True)]
    right_colours = [c == p.colour for c, p in zip(colours, prompts, strict=True)]
    return {
        "digit_accuracy": sum(right_digits) / len(prompts),
        "colour_accuracy": sum(right_colours) / len(prompts),
    }


def _reconstruction_mse(autoencoder: Any, digits: Digits, device: str) -> float:
    """Return the mean squared error of pixels from -1 to 1, each digit in the next colour."""
    colours = torch.from_numpy(palette())[torch.arange(len(digits.ink)) % len(COLOURS)]
    images = paint(torch.from_numpy(digits.ink), colours).to(device)
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
    return float(torch.nn.functional.mse_loss(decoded, images))


def _nearest_distance(features: Features, training: Digits) -> float:
    """Return the median distance to the nearest training digit, in 8x8 ink strengths."""
    neighbours = NearestNeighbors(n_neighbors=1).fit(ink_features(training.ink))
    return float(np.median(neighbours.kneighbors(features)[0]))
