"""What a model's configs say about its pipeline: its class, and which options have an effect.

Only the small JSON files of a model need to be on this machine: a mistake costs no download.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import ConfigError, suggest
from ml_experiments.tasks.text_to_image.model.quiet import quiet_logging
from ml_experiments.tasks.text_to_image.requests import DrawingSettings

PIPELINE_FILE = "model_index.json"
NETWORKS = ("unet", "transformer", "transformer_2", "decoder", "prior_prior", "prior")

# parameters of a pipeline that draws from more than text, or draws no picture
_MORE_THAN_TEXT = re.compile(r"image|video|frame|audio|second|condition|source|mask_token")
_OPTIONAL = re.compile(r"num_images_per_prompt|(negative_)?(ip_adapter_)?image(_embeds)?(_embeds)?")
# take a picture, and draw from text alone without one
_IMAGE_IS_OPTIONAL = {
    "Flux2KleinKVPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "FluxKontextPipeline",
    "GlmImagePipeline",
    "QwenImage21Pipeline",
    "StableCascadeCombinedPipeline",
    "ZImageOmniPipeline",
}
_NO_PICTURE = {"StableDiffusionLDM3DPipeline"}  # it returns depth too, and calls pictures rgb
# guide at any scale above 0, where others do above 1
_GUIDED_ABOVE_0 = {"Krea2Pipeline", "ZImagePipeline", "ZImageOmniPipeline"}
_TRAINED_STEPS = "num_train_timesteps"
# of pipelines that have two, the one that follows the prompt
_OTHER_NAMES = {"guidance_scale": "prior_guidance_scale"}


@dataclass(frozen=True)
class PipelineTraits:
    """A pipeline's class and the configs of its parts.

    Attributes:
        index: model_index.json.
        network: The config of the denoising network; empty if there is none.
    """

    pipeline_class: type[Any]
    folder: Path
    index: Mapping[str, Any]
    network: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.pipeline_class.__name__

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the pipeline can be called with."""
        return inspect.signature(self.pipeline_class.__call__).parameters

    def component_class(self, part: str) -> Any:
        """Return the diffusers class of a part, such as `vae`; None if there is none."""
        import diffusers

        named = self.index.get(part)
        if not isinstance(named, list) or named[0] != "diffusers":
            return None
        return getattr(diffusers, str(named[1]), None)

    def argument(self, option: str) -> str | None:
        """Return what the pipeline calls an option; None if it doesn't have it."""
        names = (option, _OTHER_NAMES.get(option))
        return next((name for name in names if name in self.parameters), None)

    def default(self, option: str) -> Any:
        """Return the pipeline's own value of an option."""
        name = self.argument(option)
        return None if name is None else self.parameters[name].default

    def is_guided(self, settings: DrawingSettings) -> bool:
        """Return whether a negative prompt has an effect."""
        if self.argument("true_cfg_scale"):
            scale = settings.true_cfg_scale
            return (self.default("true_cfg_scale") if scale is None else scale) > 1
        scale = settings.guidance_scale
        if scale is None:
            scale = self.default("guidance_scale")
        return scale is not None and scale > (0 if self.name in _GUIDED_ABOVE_0 else 1)

    @property
    def ignores_guidance_scale(self) -> bool:
        """Whether the pipeline takes a guidance scale that this model was not made for."""
        embeds = self.network.get("guidance_embeds")
        if self.argument("true_cfg_scale"):
            return not embeds
        return bool(self.index.get("is_distilled")) and self.name.startswith("Flux2Klein")

    def used(self, settings: DrawingSettings) -> dict[str, Any]:
        """Return the options that have an effect, with their values, defaults included."""
        values: dict[str, Any] = {}
        for option in ("num_inference_steps", "guidance_scale", "true_cfg_scale"):
            given = getattr(settings, option)
            value = self.default(option) if given is None else given
            is_unused = (option == "guidance_scale" and self.ignores_guidance_scale) or (
                option == "true_cfg_scale" and settings.negative_prompt is None
            )
            if value is not None and not is_unused:
                values[option] = value
        if settings.negative_prompt is not None:
            values["negative_prompt"] = settings.negative_prompt
        return values

    def check(self, settings: DrawingSettings) -> None:
        """Refuse the options that would have no effect.

        Raises:
            ConfigError: If there is one; it says what to do.
        """
        given = {name: value for name, value in vars(settings).items() if value is not None}
        given.pop("scheduler", None)
        unknown = sorted(name for name in given if self.argument(name) is None)
        if unknown:
            hint = ""
            if "guidance_scale" in unknown and "true_cfg_scale" in self.parameters:
                hint = "; its guidance is true_cfg_scale, with a negative_prompt"
            raise ConfigError(f"a {self.name} takes no {', '.join(unknown)}; leave it out{hint}")
        if "guidance_scale" in given and self.ignores_guidance_scale:
            other = (
                "its guidance is true_cfg_scale, with a negative_prompt"
                if self.argument("true_cfg_scale")
                else "it was distilled to draw without"
            )
            raise ConfigError(
                f"guidance_scale={given['guidance_scale']:g} has no effect on this {self.name}: "
                f"{other}; leave guidance_scale out"
            )
        has_negative = "negative_prompt" in given
        if "true_cfg_scale" in given and not has_negative:
            raise ConfigError(
                "true_cfg_scale has an effect with a negative_prompt only; give one (it may be "
                "' '), or leave true_cfg_scale out"
            )
        if has_negative and not self.is_guided(settings):
            scale = "true_cfg_scale" if self.argument("true_cfg_scale") else "guidance_scale"
            above = 0 if self.name in _GUIDED_ABOVE_0 else 1
            raise ConfigError(
                f"negative_prompt: has no effect on this {self.name} without guidance; set "
                f"{scale} above {above}, or leave negative_prompt out"
            )
        self._check_steps(settings)
        schedule = self.default("guidance_schedule")
        steps = given.get("num_inference_steps")
        if schedule and steps and "guidance_scale" not in given and steps != len(schedule):
            raise ConfigError(
                f"num_inference_steps={steps}: the guidance of a {self.name} is set for each of "
                f"{len(schedule)} steps; give guidance_scale too, for all of them"
            )

    def _check_steps(self, settings: DrawingSettings) -> None:
        """Refuse more steps than a scheduler can take.

        Raises:
            ConfigError: If there are too many.
        """
        steps, most = settings.num_inference_steps, self._scheduler_config.get(_TRAINED_STEPS, 1000)
        own = self.component_class("scheduler")
        if steps is None or steps <= most or own is None:
            return
        scheduler = self.make_scheduler(settings.scheduler or own.__name__)
        try:
            scheduler.set_timesteps(steps)
        except ValueError as e:
            if "num_inference_steps" in str(e):
                raise ConfigError(
                    f"num_inference_steps={steps}: a {type(scheduler).__name__} takes at most "
                    f"{most}, the steps that the model was trained with"
                ) from e

    @functools.cached_property
    def _scheduler_config(self) -> Mapping[str, Any]:
        file = self.folder / "scheduler" / "scheduler_config.json"
        return _read_json(file) if file.is_file() else {}

    def scheduler_class(self, wanted: str) -> type[Any]:
        """Return the scheduler of that name, if it works with the model.

        Raises:
            ConfigError: If it doesn't; it lists those that do.
        """
        own = self.component_class("scheduler")
        compatible = {_short_name(c.__name__): c for c in own._get_compatibles()} if own else {}
        if str(self._scheduler_config.get("variance_type", "")).startswith("learned"):
            # the network draws the variance too, which only some take apart
            compatible = {
                name: c
                for name, c in compatible.items()
                if "variance_type" in inspect.signature(c.__init__).parameters
            }
        chosen: type[Any] | None = compatible.get(_short_name(wanted))
        if chosen is None:
            known = sorted(_short_name(c.__name__) for c in compatible.values())
            raise ConfigError(
                f"scheduler={wanted!r} does not work with this model{suggest(wanted, known)}; "
                f"those that do: {', '.join(known)}"
            )
        return chosen

    def make_scheduler(self, wanted: str) -> Any:
        """Return the scheduler of that name, with the settings of the model's own.

        Raises:
            ConfigError: If it does not work with the model, or can't be used on this machine.
        """
        chosen = self.scheduler_class(wanted)
        try:
            return chosen.from_pretrained(self.folder, subfolder="scheduler")
        except (ImportError, ValueError) as e:
            raise ConfigError(f"scheduler={wanted!r} can't be used here: {str(e).strip()}") from e


def read_traits(folder: Path) -> PipelineTraits:
    """Read a model's configs.

    `AutoPipelineForText2Image` would import every family of models, which takes a second.

    Raises:
        ConfigError: If diffusers doesn't have its class, or it needs more than a text.
    """
    index_file = folder / PIPELINE_FILE
    index = _read_json(index_file)
    name = index.get("_class_name")
    with quiet_logging():
        import diffusers

        found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ConfigError(
            f"{index_file} names the pipeline class {name!r}, which diffusers "
            f"{diffusers.__version__} does not have; if the model is newer than that, upgrade "
            "diffusers, and if it brings its own code, it can't be used here"
        )
    reason = why_not_from_text(found)
    if reason:
        whole = re.sub(r"(Decoder|Prior)?Pipeline$", "CombinedPipeline", found.__name__)
        advice = "choose a text-to-image model"
        if hasattr(diffusers, whole):
            advice = (
                "it is one of the two halves of a model: save both in a folder with "
                f"diffusers.{whole}.from_pretrained(NAME).save_pretrained(FOLDER), where NAME is "
                "the decoder's on the Hub, and give the folder"
            )
        raise ConfigError(
            f"{folder} holds a {name}, which does not draw from a text alone: {reason}; {advice}"
        )
    network: Mapping[str, Any] = {}
    for part in NETWORKS:
        if (folder / part / "config.json").is_file():
            network = _read_json(folder / part / "config.json")
            break
    return PipelineTraits(found, folder, index, network)


def why_not_from_text(pipeline_class: type[Any]) -> str | None:
    """Return why a pipeline can't draw a picture from text alone; None if it can."""
    name = pipeline_class.__name__
    parameters = inspect.signature(pipeline_class.__call__).parameters
    parts = inspect.signature(pipeline_class.__init__).parameters
    if "prompt" not in parameters:
        return "it takes no prompt"
    output = parameters.get("output_type")
    if name in _NO_PICTURE or output is None or output.default != "pil":
        return "it makes no pictures"
    adapters = [part for part in parts if re.search("control|adapter", part)]
    if adapters:
        return f"it needs a {adapters[0]} and its pictures"
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        if p.name not in ("self", "prompt")
    ]
    if name not in _IMAGE_IS_OPTIONAL:
        needed += [
            p for p in parameters if _MORE_THAN_TEXT.search(p) and not _OPTIONAL.fullmatch(p)
        ]
        if "image" in parameters:
            needed.append("image")
    return f"it is made for {needed[0]} too" if needed else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{file} can't be read: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"{file} is not a JSON object")
    return data


def _short_name(scheduler: str) -> str:
    return scheduler.casefold().removesuffix("scheduler").removesuffix("discrete")
