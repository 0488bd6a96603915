"""Every text-to-image pipeline of diffusers: an option changes its pictures, or is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.model.pipeline_class import (
    PipelineTraits,
    read_traits,
    why_not_from_text,
)
from ml_experiments.tasks.text_to_image.requests import DrawingSettings, PictureRequest
from tests.support import tiny_pipelines

pytestmark = pytest.mark.slow

PROMPTS = ("a red seven", "two blue ones")
SEEDS = (11, 12)


def mapped() -> list[str]:
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as MAPPING

    return sorted(c.__name__ for c in MAPPING.values())


REFUSED = {
    "CogView4ControlPipeline",
    "FluxControlNetPipeline",
    "FluxControlPipeline",
    "HeliosPipeline",
    "HeliosPyramidPipeline",
    "QwenImageControlNetPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusionControlNetPAGPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPAGPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetUnionPipeline",
    "ZImageControlNetInpaintPipeline",
    "ZImageControlNetPipeline",
}
# what random weights don't show: all its pixels are black or white
UNSEEN = {("StableCascadeCombinedPipeline", "guidance_scale")}
BUILT = sorted(set(mapped()) - REFUSED - set(tiny_pipelines.NOT_BUILT))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tiny:
    """A tiny pipeline, and a drawer for it."""

    def __init__(self, name: str, folder: Path) -> None:
        import torch

        from ml_experiments.tasks.text_to_image.drawing import Drawer
        from ml_experiments.tasks.text_to_image.model.loading import LoadedPipeline
        from ml_experiments.tasks.text_to_image.model.model_files import ModelFiles

        self.pipeline = pipeline = tiny_pipelines.build(name)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        index = json.loads(json.dumps(dict(pipeline.config), default=str))
        network = next((part for part in ("unet", "transformer", "decoder") if part in index), None)
        config = dict(getattr(pipeline, network).config) if network else {}
        self.traits = PipelineTraits(type(pipeline), folder, index, config)
        files = ModelFiles(folder, self.traits)
        loaded = LoadedPipeline(
            pipeline, files, torch.device("cpu"), torch.float32, pipeline.scheduler, 0
        )
        self.drawer = Drawer(loaded)

    def draw(self, settings: DrawingSettings, places: tuple[int, ...] = (0, 1)) -> Any:
        """Draw as the experiment does, all at once."""
        requests = [PictureRequest(p, 0, PROMPTS[p], SEEDS[p], settings) for p in places]
        drawn = self.drawer.draw(requests, lambda _: None)
        assert not any(each.overflowed for each in drawn)
        return np.stack([np.asarray(each.picture.convert("RGB"), dtype=int) for each in drawn])

    def draw_plainly(self, place: int, **arguments: Any) -> Any:
        """Draw as a user of diffusers would."""
        import torch

        self.pipeline.scheduler = self.drawer.loaded.scheduler
        if "max_area" in self.traits.parameters:  # else a size says no more than its proportions
            arguments["max_area"] = arguments["height"] * arguments["width"]
        picture = self.pipeline(
            prompt=PROMPTS[place],
            generator=torch.Generator().manual_seed(SEEDS[place]),
            **arguments,
        ).images[0]
        return np.asarray(picture.convert("RGB"), dtype=int)


def base_settings(tiny: Tiny) -> DrawingSettings:
    side = 128 if tiny.traits.name.startswith("StableCascade") else 64
    return DrawingSettings(num_inference_steps=3, height=side, width=side)


# all of them take ten minutes: pytest -m exhaustive
SAMPLE = {"FluxPipeline", "StableDiffusionPipeline", "PixArtAlphaPipeline"}


@pytest.mark.parametrize(
    "name",
    [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.exhaustive) for n in BUILT],
)
def test_every_option_changes_the_pictures_or_is_refused(name: str, tmp_path: Path) -> None:
    tiny = Tiny(name, tmp_path)
    base = base_settings(tiny)
    tiny.traits.check(base)
    plain = tiny.draw(base)
    arguments = {"num_inference_steps": 3, "height": base.height, "width": base.width}
    for place in (0, 1):
        assert np.abs(tiny.draw_plainly(place, **arguments) - plain[place]).max() <= 1
        assert np.abs(tiny.draw(base, (place,))[0] - plain[place]).max() <= 1
    negative = {"negative_prompt": "green, five"}
    changes: list[dict[str, Any]] = [
        {"num_inference_steps": 5},
        {"height": base.height // 2 + base.height},  # type: ignore[operator]
        {"guidance_scale": 30.0},
        negative,
        {"true_cfg_scale": 30.0},
        {**negative, "true_cfg_scale": 30.0},
        {**negative, "guidance_scale": 0.0},
        {"scheduler": "eulerancestral"},
    ]
    used = 0
    for change in changes:
        settings = dataclasses.replace(base, **change)
        try:
            if settings.scheduler is not None:
                tiny.traits.make_scheduler(settings.scheduler)
            tiny.traits.check(settings)
        except ConfigError:
            continue
        used += 1
        own_scheduler = type(tiny.drawer.loaded.scheduler).__name__
        if settings.scheduler and tiny.drawer.scheduler_name(settings) == own_scheduler:
            continue
        try:
            drawn = tiny.draw(settings)
        except ConfigError as e:
            if "choose a size" not in str(e):
                raise
            continue
        if (name, *change) in UNSEEN:
            continue
        assert drawn.shape != plain.shape or np.abs(drawn - plain).max() > 0, change
        alone = tiny.draw(settings, (1,))[0]
        assert np.abs(alone - drawn[1]).max() <= 1, change
        if settings.scheduler is None:
            given = {k: v for k, v in vars(settings).items() if v is not None}
            given = {tiny.traits.argument(k): v for k, v in given.items()}
            assert np.abs(tiny.draw_plainly(0, **given) - drawn[0]).max() <= 1, change
    assert used >= 2


def test_pipelines_that_need_more_than_a_text_are_refused() -> None:
    import diffusers

    for name in mapped():
        reason = why_not_from_text(getattr(diffusers, name))
        assert (reason is not None) == (name in REFUSED), (name, reason)
    others = (
        *("WanPipeline", "CogVideoXPipeline", "AnimateDiffPipeline", "StableAudioPipeline"),
        *("StableAudio3Pipeline", "AudioLDM2Pipeline", "StableDiffusionInstructPix2PixPipeline"),
        *("StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline"),
        *("QwenImageEditPipeline", "FluxFillPipeline", "StableDiffusionImg2ImgPipeline"),
        *("KandinskyPriorPipeline", "StableDiffusionLDM3DPipeline", "ShapEPipeline"),
        *("LTXPipeline", "StableDiffusionAdapterPipeline", "TextToVideoZeroPipeline"),
    )
    for name in others:
        assert why_not_from_text(getattr(diffusers, name)) is not None, name


def test_half_of_a_model_is_refused_with_how_to_get_the_whole(tmp_path: Path) -> None:
    for half, whole in {
        "KandinskyPipeline": "KandinskyCombinedPipeline",
        "KandinskyV22Pipeline": "KandinskyV22CombinedPipeline",
        "KandinskyV22PriorPipeline": "KandinskyV22CombinedPipeline",
        "WuerstchenDecoderPipeline": "WuerstchenCombinedPipeline",
        "StableCascadeDecoderPipeline": "StableCascadeCombinedPipeline",
    }.items():
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": half}))
        with pytest.raises(ConfigError, match=rf"diffusers\.{whole}\.from_pretrained"):
            read_traits(tmp_path)
