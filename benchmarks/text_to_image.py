"""Draw 64 pictures with tiny-digits, against a plain diffusers loop, and one at a time.

All are in this process, each with a pipeline of its own that is loaded already; every round
draws and saves the same pictures with each, in turn, so that a busy machine slows all alike.

    python benchmarks/text_to_image.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ml_experiments import run_experiment
from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend, Observer
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import model_dir
from ml_experiments.tasks.tiny_digits.recommended import RECOMMENDED_SETTINGS

PROMPT = "a red handwritten seven"
TARGET = 0.95


def draw_with_experiment(backend: Backend, folder: Path, count: int, batch_size: int) -> Any:
    """Return the result of a run, which is drawn and saved into its run folder."""
    config = {"prompt": PROMPT, "num_images": count, "batch_size": batch_size}
    return run_experiment(
        TextToImageExperiment,
        config,
        backend=backend,
        runs_dir=folder,
        observer=Observer(),
        seed=1,
    ).raise_for_error()


def draw_plainly(pipeline: Any, folder: Path, seeds: list[int], batch_size: int) -> None:
    """Draw and save as a script of a few lines would."""
    import torch

    for start in range(0, len(seeds), batch_size):
        chosen = seeds[start : start + batch_size]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in chosen]
        drawn = pipeline([PROMPT] * len(chosen), generator=generators, **RECOMMENDED_SETTINGS)
        for number, picture in enumerate(drawn.images, start):
            picture.save(folder / f"{number:03d}.png")


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def same_pictures(result: Any, folder: Path) -> bool:
    """Say whether a run drew what the plain loop saved, but for rounding."""
    for image, file in zip(result.results["images"], sorted(folder.glob("*.png")), strict=True):
        drawn, saved = Image.open(result.load(image["path"])), Image.open(file)
        difference = np.asarray(drawn, dtype=int) - np.asarray(saved, dtype=int)
        if np.abs(difference).max() > 1:
            return False
    return True


def measure(rounds: int, count: int, batch_size: int) -> dict[str, list[float]]:
    """Return pictures per second, by way of drawing, one number per round."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, open_backend("debug") as backend:
        folder = Path(temporary)
        (folder / "plain").mkdir()
        # loads the experiment's pipeline, and imports diffusers without its notices
        result = draw_with_experiment(backend, folder / "runs", count, batch_size)
        import torch
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(model_dir(), dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        seeds = [image["seed"] for image in result.results["images"]]
        draw_plainly(pipeline, folder / "plain", seeds, batch_size)
        if not same_pictures(result, folder / "plain"):
            raise SystemExit("the experiment and the plain loop draw different pictures")
        ways: dict[str, Callable[[], Any]] = {
            "plain diffusers loop": lambda: draw_plainly(
                pipeline, folder / "plain", seeds, batch_size
            ),
            "TextToImageExperiment, whole run": lambda: draw_with_experiment(
                backend, folder / "runs", count, batch_size
            ),
            "plain diffusers, one at a time": lambda: draw_plainly(
                pipeline, folder / "plain", seeds, 1
            ),
        }
        for number in range(rounds):
            for name in list(ways) if number % 2 else list(ways)[::-1]:
                rates.setdefault(name, []).append(count / timed(ways[name]))
        return {name: rates[name] for name in ways}


def report(rates: dict[str, list[float]], count: int, batch_size: int) -> None:
    """Print the table; a ratio is the median of the rounds' own ratios."""
    plain, experiment, single = rates.values()
    print(f"{count} pictures, batch size {batch_size}, {len(plain)} rounds, pictures per second\n")
    print("| way | median | min | max | against the plain loop |")
    print("|---|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
        print(
            f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} "
            f"| {max(values):.1f} | {ratio:.2f}x |"
        )
    ratio = statistics.median(a / b for a, b in zip(experiment, plain, strict=True))
    faster = statistics.median(a / b for a, b in zip(experiment, single, strict=True))
    verdict = "met" if ratio >= TARGET else "MISSED"
    print(f"\ntarget: at least {TARGET}x the plain loop: {verdict} ({ratio:.2f}x)")
    print(f"against one picture at a time: {faster:.1f}x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    rates = measure(arguments.rounds, arguments.count, arguments.batch_size)
    report(rates, arguments.count, arguments.batch_size)


if __name__ == "__main__":
    main()
