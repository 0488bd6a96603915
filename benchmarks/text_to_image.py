"""Draw 64 pictures with tiny-digits, against a plain diffusers loop, and one at a time.

All are in this process, each with a pipeline of its own that is loaded already; every round
draws and saves the same pictures with each, in turn, so that a busy machine slows all alike.
"Drawing" is what the run itself reports: pictures drawn, checked and on disk. The whole run
adds the run folder with its manifest and logs, and the contact sheet.

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
from ml_experiments.backends.base import Backend
from ml_experiments.execution.observer import Observer
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import RECOMMENDED_SETTINGS, model_dir

PROMPT = "a red handwritten seven"
TARGET = 0.95
WAYS = (
    "plain diffusers loop",
    "TextToImageExperiment, drawing",
    "TextToImageExperiment, whole run",
    "plain diffusers, one at a time",
)


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


def drawing_seconds(result: Any) -> float:
    """Return how long a run drew, by its own account."""
    return float(len(result.results["images"]) / result.results["images_per_second"])


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
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
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
        for number in range(rounds):
            # each goes first as often as the other
            for way in ("plain", "experiment") if number % 2 else ("experiment", "plain"):
                if way == "plain":
                    seconds = timed(
                        lambda: draw_plainly(pipeline, folder / "plain", seeds, batch_size)
                    )
                    rates["plain diffusers loop"].append(count / seconds)
                    continue
                started = time.perf_counter()
                result = draw_with_experiment(backend, folder / "runs", count, batch_size)
                seconds = time.perf_counter() - started
                rates["TextToImageExperiment, drawing"].append(count / drawing_seconds(result))
                rates["TextToImageExperiment, whole run"].append(count / seconds)
            seconds = timed(lambda: draw_plainly(pipeline, folder / "plain", seeds, 1))
            rates["plain diffusers, one at a time"].append(count / seconds)
        return rates


def report(rates: dict[str, list[float]], count: int, batch_size: int) -> None:
    """Print the table; a ratio is the median of the rounds' own ratios."""
    plain, experiment, _, single = rates.values()
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
