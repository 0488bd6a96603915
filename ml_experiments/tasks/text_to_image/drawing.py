"""Draws a batch of pictures with a loaded pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.batches import Drawn
from ml_experiments.tasks.text_to_image.long_prompts import PromptEncoder, unread_part
from ml_experiments.tasks.text_to_image.model.denoiser import denoising_networks
from ml_experiments.tasks.text_to_image.model.loading import LoadedPipeline
from ml_experiments.tasks.text_to_image.model.pipeline_class import PipelineTraits
from ml_experiments.tasks.text_to_image.requests import DrawingSettings, PictureRequest

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import TextToImageConfig

OnStep = Callable[[float], None]

_USUAL_SIDE = 1024
# fail for several prompts with a negative one, or pad prompts to the longest of a batch
_ONE_AT_A_TIME = {
    "CogView4Pipeline",
    "Kandinsky3Pipeline",
    "KandinskyCombinedPipeline",
    "KandinskyV22CombinedPipeline",
}


@dataclass(frozen=True)
class Drawer:
    """Draws batches with a pipeline.

    Attributes:
        encoder: Encodes prompts of any length; None leaves that to the pipeline.
    """

    loaded: LoadedPipeline
    encoder: PromptEncoder | None = None

    @property
    def traits(self) -> PipelineTraits:
        """What the pipeline does with which option."""
        return self.loaded.files.traits

    def draw(self, requests: Sequence[PictureRequest], on_step: OnStep) -> Sequence[Drawn]:
        """Draw pictures together, all with the same settings but for the negative prompt.

        Args:
            requests: The pictures.
            on_step: Called with the share of the work that is done.

        Raises:
            ConfigError: If the model draws in other sizes only.
        """
        self._use_scheduler(requests)
        groups: list[list[PictureRequest]] = [[r] for r in requests]
        if not self._mixes_noise():
            groups = self._of_same_length(requests)
        drawn: dict[int, Drawn] = {}
        for group in groups:
            done, share = len(drawn) / len(requests), len(group) / len(requests)
            together = self._draw_together(group, lambda s, d=done, h=share: on_step(d + s * h))  # type: ignore[misc]
            drawn |= zip((request.index for request in group), together, strict=True)
        return [drawn[request.index] for request in requests]

    def _of_same_length(self, requests: Sequence[PictureRequest]) -> list[list[PictureRequest]]:
        """Return groups whose encoded prompts have the same length; padding changes pictures."""
        if self.encoder is None:
            return [list(requests)]
        groups: dict[int, list[PictureRequest]] = {}
        for request in requests:
            length = self._encoded(request)["prompt_embeds"].shape[1]
            groups.setdefault(length, []).append(request)
        return list(groups.values())

    def _encoded(self, request: PictureRequest) -> dict[str, Any]:
        encoder: Any = self.encoder
        encoded: dict[str, Any] = encoder.encode(request.prompt, request.settings.negative_prompt)
        return encoded

    def scheduler_name(self, settings: DrawingSettings) -> str:
        """Return the class name of the scheduler that is used."""
        if settings.scheduler is None:
            return type(self.loaded.scheduler).__name__
        return self.traits.scheduler_class(settings.scheduler).__name__

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that the model doesn't read."""
        return unread_part(self.loaded.pipeline, self.traits.parameters, prompt)

    def size_of(self, settings: DrawingSettings) -> tuple[int, int]:
        """Return the height and width of the pictures that the pipeline will draw."""
        pipeline = self.loaded.pipeline
        side = getattr(pipeline, "default_sample_size", None)
        for network in denoising_networks(pipeline):
            side = side or getattr(network.config, "sample_size", None)
        scale = getattr(pipeline, "vae_scale_factor", None)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        if not (scale and height and width):
            height, width, scale = _USUAL_SIDE, _USUAL_SIDE, 1
        return settings.height or height * scale, settings.width or width * scale

    def _draw_together(
        self, requests: Sequence[PictureRequest], on_step: OnStep
    ) -> Sequence[Drawn]:
        pipeline, settings = self.loaded.pipeline, requests[0].settings
        if self._mixes_noise():
            torch.manual_seed(requests[0].seed)  # of a scheduler that uses no generator
        arguments = self._arguments(requests)
        if "callback_on_step_end" in self.traits.parameters:
            arguments["callback_on_step_end"] = _step_listener(on_step)
            arguments["callback_on_step_end_tensor_inputs"] = []
        # numbers, in which an overflow shows; a watermark is added to pictures only
        is_marked = getattr(pipeline, "watermarker", None) is not None
        output = pipeline(
            # on the CPU, so that every device starts from the same noise
            generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            output_type="pil" if is_marked else "np",
            **arguments,
        )
        pictures, overflowed = _as_pictures(output.images)
        for picture in pictures:
            _check_size(settings, picture.size)
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        return [Drawn(p, bool(f), o) for p, f, o in zip(pictures, flags, overflowed, strict=True)]

    def _arguments(self, requests: Sequence[PictureRequest]) -> dict[str, Any]:
        """Return what the pipeline is called with."""
        settings, traits = requests[0].settings, self.traits
        arguments: dict[str, Any] = {}
        for option in ("num_inference_steps", "guidance_scale", "true_cfg_scale"):
            value, name = getattr(settings, option), traits.argument(option)
            if value is not None and name is not None:
                arguments[name] = value
        if settings.guidance_scale is not None and "guidance_schedule" in traits.parameters:
            arguments["guidance_schedule"] = None
        if settings.height or settings.width:  # given one side only, pipelines ignore it
            arguments["height"], arguments["width"] = self.size_of(settings)
            if "max_area" in traits.parameters:  # else it draws about a million pixels
                arguments["max_area"] = arguments["height"] * arguments["width"]
        prompts = [request.prompt for request in requests]
        negative = [request.settings.negative_prompt for request in requests]
        if self.encoder is not None:
            encoded = [self._encoded(request) for request in requests]
            return arguments | {name: torch.cat([e[name] for e in encoded]) for name in encoded[0]}
        arguments["prompt"] = prompts
        if settings.negative_prompt is not None:
            arguments["negative_prompt"] = negative
        if len(requests) == 1 and traits.name in _ONE_AT_A_TIME:
            arguments |= {k: v[0] for k, v in arguments.items() if k.endswith("prompt")}
        return arguments

    def _mixes_noise(self) -> bool:
        """Whether pictures that are drawn together would not be what they are alone."""
        config = getattr(self.loaded.pipeline.scheduler, "config", {})
        return self.traits.name in _ONE_AT_A_TIME or bool(config.get("stochastic_sampling"))

    def _use_scheduler(self, requests: Sequence[PictureRequest]) -> None:
        """Give the pipeline the scheduler that was asked for, or the model's own.

        Raises:
            ConfigError: If it can't be used on this machine.
        """
        scheduler, wanted = self.loaded.scheduler, requests[0].settings.scheduler
        if wanted is not None:
            scheduler = self.traits.make_scheduler(wanted)
        if hasattr(scheduler, "noise_sampler_seed"):  # else its noise depends on the batch
            scheduler.noise_sampler_seed = [request.seed for request in requests]
        pipeline = self.loaded.pipeline
        pipeline.scheduler = scheduler
        if (inner := getattr(pipeline, "decoder_pipe", None)) is not None:
            inner.scheduler = scheduler


def prepare_memory_savers(loaded: LoadedPipeline, config: TextToImageConfig) -> None:
    """Set a pipeline up for one run; what an earlier run set is undone.

    Raises:
        ConfigError: If the model doesn't work with a setting.
    """
    _slice_attention(loaded.pipeline, config.attention_slicing)
    vae: Any = getattr(loaded.pipeline, "vae", None)
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling() if config.vae_tiling else vae.disable_tiling()


def _as_pictures(images: Any) -> tuple[list[Image], list[bool]]:
    """Return pictures, and for each whether it holds values that are no numbers."""
    from diffusers.utils import numpy_to_pil

    if not isinstance(images, np.ndarray):
        black = [np.asarray(picture).max() == 0 for picture in images]
        return list(images), black
    overflowed = [not np.isfinite(image).all() for image in images]
    whole = np.where(np.isfinite(images), images, 0)
    for place, flag in enumerate(overflowed):
        if flag:
            whole[place] = 0
    return numpy_to_pil(whole), overflowed


def _check_size(settings: DrawingSettings, size: tuple[int, int]) -> None:
    asked = (settings.width or size[0], settings.height or size[1])
    if size != asked:
        raise ConfigError(
            f"width={asked[0]}, height={asked[1]}: this model drew {size[0]} by {size[1]} "
            "pixels instead; choose a size that it supports"
        )


def _step_listener(on_step: OnStep) -> Callable[..., dict[str, Any]]:
    def listen(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(min(1.0, (step + 1) / len(pipeline.scheduler.timesteps)))
        return tensors

    return listen


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
