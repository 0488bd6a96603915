"""What TextToImageExperiment draws, writes and reports."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.spec import RunSpec
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import RECOMMENDED_SETTINGS, model_dir
from tests.support.pictures import (
    PROMPT,
    FailsInNetwork,
    PlainDiffusers,
    difference,
    draw,
    make_model,
    pixels,
)

pytestmark = pytest.mark.slow

CLASS_PATH = "ml_experiments.tasks.text_to_image.TextToImageExperiment"


class Listener(Observer):
    """Keeps the progress and the metrics that it hears."""

    def __init__(self) -> None:
        self.progress_made: list[tuple[float, float | None]] = []
        self.metrics_logged: list[tuple[int | None, dict[str, Any]]] = []
        self.lock = threading.Lock()

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        with self.lock:
            self.progress_made.append((done, total))

    def metrics(self, spec: RunSpec, metrics: Any, step: int | None) -> None:
        with self.lock:
            self.metrics_logged.append((step, metrics))


def test_first_run_needs_only_a_prompt_and_says_nothing_on_the_terminal() -> None:
    pytest.importorskip("torch")
    config = {"prompt": PROMPT, "num_images": 8}
    result = run_experiment(CLASS_PATH, config, seed=1).raise_for_error()
    results = result.results
    drawn = pixels(result)
    assert drawn.shape == (8, 32, 32, 3)
    assert [image["index"] for image in results["images"]] == list(range(8))
    assert {image["prompt"] for image in results["images"]} == {PROMPT}
    names = [Path(image["path"]["path"]).name for image in results["images"]]
    assert names == [f"{i:03d}-a-red-handwritten-seven.png" for i in range(8)]
    # red, on black
    assert drawn[..., 0].mean() > 5 * drawn[..., 1].mean() > 0
    assert {name: results[name] for name in RECOMMENDED_SETTINGS} == dict(RECOMMENDED_SETTINGS)
    assert (results["device"], results["dtype"]) == ("cpu", "float32")
    assert (results["model_name"], results["model_revision"]) == ("tiny-digits", None)
    assert (results["batch_size"], results["batch_sizes_out_of_memory"]) == (8, [])
    assert results["load_seconds"] > 0
    assert results["images_per_second"] > 0
    latency = results["latency_seconds_per_batch"]
    assert 0 < latency["p50"] <= latency["p95"]
    assert result.run_dir is not None
    assert (result.run_dir / "log.txt").read_text() == ""


def test_recommended_settings_are_those_that_tiny_digits_was_measured_with() -> None:
    measured = json.loads((model_dir() / "evaluation.json").read_text(encoding="utf-8"))
    assert RECOMMENDED_SETTINGS["num_inference_steps"] == measured["inference_steps"]
    assert RECOMMENDED_SETTINGS["guidance_scale"] == measured["guidance_scale"]


def test_a_picture_is_the_same_at_every_batch_size(warm_backend: LocalBackend) -> None:
    alone = pixels(draw(warm_backend, num_images=7, batch_size=1))
    for batch_size in (3, 7, 50, "auto"):
        together = pixels(draw(warm_backend, num_images=7, batch_size=batch_size))
        assert difference(alone, together) <= 1


def test_a_run_repeated_in_another_worker_draws_identical_pictures(
    warm_backend: LocalBackend,
) -> None:
    before = pixels(draw(warm_backend, num_images=5, batch_size=2))
    assert difference(before, pixels(draw(warm_backend, num_images=5, batch_size=2))) == 0
    with LocalBackend() as other:
        assert difference(before, pixels(draw(other, num_images=5, batch_size=2))) == 0


def test_a_picture_depends_on_its_prompt_not_on_the_others(warm_backend: LocalBackend) -> None:
    prompts = ["a red seven", "blue 3", "the digit nine"]
    forward = pixels(draw(warm_backend, prompt=prompts, num_images=2))
    backward = pixels(draw(warm_backend, prompt=prompts[::-1], num_images=2))
    alone = pixels(draw(warm_backend, prompt="blue 3", num_images=2))
    assert difference(forward.reshape(3, 2, -1), backward.reshape(3, 2, -1)[::-1]) <= 1
    assert difference(forward[2:4], alone) <= 1


def test_more_pictures_of_a_prompt_begin_with_the_same_ones(warm_backend: LocalBackend) -> None:
    few = pixels(draw(warm_backend, num_images=2))
    many = pixels(draw(warm_backend, num_images=5))
    assert difference(few, many[:2]) <= 1
    assert all(difference(many[0], other) > 20 for other in many[1:])


def test_seed_is_the_runs_unless_the_config_has_one(warm_backend: LocalBackend) -> None:
    of_config = draw(warm_backend, seed=5, run_seed=1)
    of_run = draw(warm_backend, run_seed=5)
    other = draw(warm_backend, run_seed=6)
    assert of_config.results["seed"] == of_run.results["seed"] == 5
    assert difference(pixels(of_config), pixels(of_run)) == 0
    assert difference(pixels(of_run), pixels(other)) > 20


def test_plain_diffusers_draws_the_same_picture_from_the_recorded_seed(
    warm_backend: LocalBackend,
) -> None:
    result = draw(warm_backend, num_images=2)
    plain = run_experiment(
        PlainDiffusers,
        {"seed": result.results["images"][1]["seed"], "num_inference_steps": 2}
        | {"guidance_scale": RECOMMENDED_SETTINGS["guidance_scale"]},
        backend=warm_backend,
    ).raise_for_error()
    picture = np.asarray(plain.load(plain.results), dtype=np.int16)
    assert difference(pixels(result)[1], picture) <= 1


def test_pictures_tell_how_they_were_drawn(warm_backend: LocalBackend) -> None:
    prompt = "eine 7 → 赤い ☃"
    result = draw(warm_backend, prompt=prompt, negative_prompt="blue", num_images=2)
    record = result.results["images"][1]
    file = result.load(record["path"])
    with Image.open(file) as picture:
        texts = dict(picture.text)  # type: ignore[attr-defined]
    assert texts.pop("parameters").startswith(
        f"{prompt}\nNegative prompt: blue\nSteps: 2, Sampler: DDIMScheduler, CFG scale: 3.0, "
        f"Seed: {record['seed']}, Size: 32x32, Model: tiny-digits, Version: ml_experiments "
    )
    assert texts == {
        "prompt": prompt,
        "seed": str(record["seed"]),
        "index": "1",
        "model": "tiny-digits",
        "negative_prompt": "blue",
        "scheduler": "DDIMScheduler",
        "num_inference_steps": "2",
        "guidance_scale": "3.0",
    }
    assert file.name == "001-eine-7.png"


def test_contact_sheet_shows_every_picture(warm_backend: LocalBackend) -> None:
    result = draw(warm_backend, prompt=["a red 7", "a green 1"], num_images=3)
    sheet = Image.open(result.load(result.results["contact_sheet"])).convert("RGB")
    shown = np.asarray(sheet, dtype=np.int16)
    for picture in pixels(result):  # enlarged by whole pixels
        large = picture.repeat(4, axis=0).repeat(4, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(shown[:, :, 0], (1, 128))[..., 0, :]
        rows, _ = np.nonzero((windows == large[64, :, 0]).all(axis=-1))
        assert rows.size > 0


def test_progress_and_metrics_are_reported_while_drawing(warm_backend: LocalBackend) -> None:
    listener = Listener()
    config = {"prompt": PROMPT, "num_images": 6, "batch_size": 2, "num_inference_steps": 3}
    result = run_experiment(
        TextToImageExperiment, config, backend=warm_backend, observer=listener, seed=1
    )
    result.raise_for_error()
    drawing = [done for done, total in listener.progress_made if total == 6]
    assert drawing == sorted(drawing)
    assert drawing[-1] == 6
    assert len(drawing) == 9  # every step of every batch
    assert [step for step, _ in listener.metrics_logged] == [2, 4, 6]
    assert all(metrics["images_per_second"] > 0 for _, metrics in listener.metrics_logged)


def test_soft_timeout_keeps_what_was_drawn(warm_backend: LocalBackend) -> None:
    result = draw(warm_backend, FailsInNetwork, num_images=6, batch_size=2, soft_timeout_in_batch=2)
    assert pixels(result).shape[0] == 4
    assert result.load(result.results["contact_sheet"]).is_file()
    assert result.run_dir is not None
    assert "keeping the pictures drawn so far" in (result.run_dir / "log.txt").read_text()


def test_soft_timeout_before_the_first_picture_ends_the_run(warm_backend: LocalBackend) -> None:
    result = draw(warm_backend, FailsInNetwork, soft_timeout_in_batch=0)
    assert result.error is not None
    assert result.error.kind == "timeout"


def test_a_prompt_longer_than_the_model_reads_is_warned_about(warm_backend: LocalBackend) -> None:
    result = draw(warm_backend, prompt="a red handwritten seven " * 30)
    result.raise_for_error()
    assert result.run_dir is not None
    assert re.search("truncated", (result.run_dir / "log.txt").read_text())


def test_pictures_that_the_model_painted_black_are_marked(warm_backend: LocalBackend) -> None:
    model = make_model(warm_backend, is_unsafe=True)
    result = draw(warm_backend, model_name=model, num_images=2)
    assert pixels(result).max() == 0
    assert [image["blacked_out"] for image in result.results["images"]] == [True, True]
    assert result.run_dir is not None
    assert "safety checker painted 000-" in (result.run_dir / "log.txt").read_text()
