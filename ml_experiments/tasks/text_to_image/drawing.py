"""Draws a batch of pictures with a loaded pipeline, under the settings of one run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ml_experiments.errors import ConfigError, suggest
from ml_experiments.tasks.text_to_image.batches import Drawing, PictureRequest
from ml_experiments.tasks.text_to_image.denoiser import denoising_networks
from ml_experiments.tasks.text_to_image.loading import LoadedPipeline

OnStep = Callable[[float], None]

_USUAL_SIDE = 1024


@dataclass(frozen=True)
class DrawingSettings:
    """What a run passes to the pipeline for every picture; None is the pipeline's own default.

    Attributes:
        height: In pixels, as is the width.
    """

    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Drawer:
    """Draws batches with a pipeline.

    Attributes:
        arguments: What the pipeline is called with for every batch.
        scheduler: The class name of the scheduler in use.
        height: In pixels, as is the width: what pictures are expected to have.
    """

    pipeline: Any
    settings: DrawingSettings
    arguments: dict[str, Any]
    scheduler: str
    height: int
    width: int

    def draw(self, requests: Sequence[PictureRequest], on_step: OnStep) -> Drawing:
        """Draw pictures together; `on_step` hears which share of the work is done.

        Raises:
            ConfigError: If the model draws in other sizes only.
        """
        arguments = dict(self.arguments)
        if self.settings.negative_prompt is not None:
            arguments["negative_prompt"] = [self.settings.negative_prompt] * len(requests)
        if "callback_on_step_end" in _parameters(self.pipeline):
            arguments["callback_on_step_end"] = _step_listener(on_step)
            arguments["callback_on_step_end_tensor_inputs"] = []
        output = self.pipeline(
            prompt=[request.prompt for request in requests],
            # on the CPU, so that every device starts from the same noise
            generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            **arguments,
        )
        for picture in output.images:
            self._check_size(picture.size)
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        return Drawing(output.images, [bool(flag) for flag in flags])

    def effective(self, argument: str) -> Any:
        """Return the value of a pipeline's argument in this run, its own default included."""
        parameter = _parameters(self.pipeline).get(argument)
        return self.arguments.get(argument, parameter.default if parameter else None)

    def _check_size(self, size: tuple[int, int]) -> None:
        asked = (self.settings.width or size[0], self.settings.height or size[1])
        if size != asked:
            raise ConfigError(
                f"width={asked[0]}, height={asked[1]}: this model drew {size[0]} by {size[1]} "
                "pixels instead; choose a size that it supports"
            )


def prepare_drawer(
    loaded: LoadedPipeline,
    settings: DrawingSettings,
    *,
    scheduler: str | None,
    attention_slicing: bool,
    vae_tiling: bool,
) -> Drawer:
    """Set a pipeline up for one run; what an earlier run set is undone.

    Raises:
        ConfigError: If the model doesn't work with a setting.
    """
    pipeline = loaded.pipeline
    _slice_attention(pipeline, attention_slicing)
    _tile_vae(pipeline, vae_tiling)
    height, width = _expected_size(pipeline, settings)
    given = {
        "negative_prompt": settings.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
    }
    if settings.height or settings.width:  # given one side only, pipelines ignore it
        given |= {"height": height, "width": width}
    given = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(set(given) - set(_parameters(pipeline)))
    if unknown:
        raise ConfigError(
            f"a {type(pipeline).__name__} takes no {', '.join(unknown)}; leave it out"
        )
    given.pop("negative_prompt", None)  # it's passed once for each picture of a batch
    return Drawer(
        pipeline, settings, given, _use_scheduler(loaded, scheduler), height=height, width=width
    )


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(type(pipeline).__call__).parameters)


def _step_listener(on_step: OnStep) -> Callable[..., dict[str, Any]]:
    def listen(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(min(1.0, (step + 1) / len(pipeline.scheduler.timesteps)))
        return tensors

    return listen


def _expected_size(pipeline: Any, settings: DrawingSettings) -> tuple[int, int]:
    """Return the height and width of the pictures that a pipeline will draw."""
    side = getattr(pipeline, "default_sample_size", None)
    for network in denoising_networks(pipeline):
        side = side or getattr(network.config, "sample_size", None)
    scale = getattr(pipeline, "vae_scale_factor", None)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    if not (scale and height and width):
        height, width, scale = _USUAL_SIDE, _USUAL_SIDE, 1
    return settings.height or height * scale, settings.width or width * scale


def _use_scheduler(loaded: LoadedPipeline, wanted: str | None) -> str:
    """Give the pipeline the scheduler of that name, or the model's own; return its class name."""
    if wanted is None:
        loaded.pipeline.scheduler = loaded.scheduler
        return type(loaded.scheduler).__name__
    compatible = {_short_name(c.__name__): c for c in loaded.scheduler.compatibles}
    chosen = compatible.get(_short_name(wanted))
    if chosen is None:
        known = sorted(_short_name(c.__name__) for c in compatible.values())
        raise ConfigError(
            f"scheduler={wanted!r} does not work with this model{suggest(wanted, known)}; "
            f"those that do: {', '.join(known)}"
        )
    try:
        loaded.pipeline.scheduler = chosen.from_config(loaded.scheduler.config)
    except (ImportError, ValueError) as e:
        raise ConfigError(f"scheduler={wanted!r} can't be used here: {str(e).strip()}") from e
    return str(chosen.__name__)


def _short_name(scheduler: str) -> str:
    return scheduler.casefold().removesuffix("scheduler").removesuffix("discrete")


def _slice_attention(pipeline: Any, wanted: bool) -> None:
    if wanted == _is_sliced(pipeline):
        return  # setting it anew would make a compiled network compile again
    if not wanted:
        pipeline.disable_attention_slicing()
        return
    pipeline.enable_attention_slicing()
    if not _is_sliced(pipeline):
        raise ConfigError(
            f"attention_slicing: the attention of a {type(pipeline).__name__} can't be sliced; "
            "set it to false, and use cpu_offload or quantization to save memory"
        )


def _is_sliced(pipeline: Any) -> bool:
    processors = [
        processor
        for network in denoising_networks(pipeline)
        for processor in getattr(network, "attn_processors", {}).values()
    ]
    return any(type(processor).__name__.startswith("Sliced") for processor in processors)


def _tile_vae(pipeline: Any, wanted: bool) -> None:
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling() if wanted else vae.disable_tiling()
    elif wanted:
        raise ConfigError(
            f"vae_tiling: a {type(pipeline).__name__} has no VAE that draws in tiles; "
            "set it to false"
        )
