"""Draws pictures from prompts with any text-to-image model of the diffusers library."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, PositiveInt

from ml_experiments.errors import SoftTimeout
from ml_experiments.experiment.base import Experiment, ExperimentConfig
from ml_experiments.experiment.context import current_run

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.batches import Drawing, PictureRequest
    from ml_experiments.tasks.text_to_image.drawing import Drawer
    from ml_experiments.tasks.text_to_image.gallery import Gallery
    from ml_experiments.tasks.text_to_image.loading import LoadedPipeline

logger = logging.getLogger(__name__)

PictureSide = Annotated[int, Field(ge=8, multiple_of=8)]


class TextToImageConfig(ExperimentConfig):
    """What to draw and how; None leaves the choice to the model.

    Attributes:
        model_name: `tiny-digits` (comes with this package), a name on the Hugging Face Hub,
            or a folder written by `pipeline.save_pretrained()`.
        revision: Branch, tag or commit of the model on the Hub.
        variant: Which of the model's sets of weights, such as `fp16`.
        prompt: One, or several different ones.
        negative_prompt: What pictures should not show; works through guidance.
        num_images: Pictures of each prompt.
        height: In pixels, as is the width.
        scheduler: Name of a diffusers scheduler, such as `EulerDiscreteScheduler` or `euler`.
        seed: By default the run's seed.
        batch_size: Pictures drawn together; `auto` finds out what fits in memory.
        dtype: Number format; `auto` is bfloat16 or float16 on a GPU, float32 on a CPU.
        device: `auto` takes a GPU when there is one.
        quantization: Bits of the weights of the denoising network's linear layers.
        attention_slicing: Less memory for attention, more time.
        vae_tiling: Less memory for decoding large pictures, in tiles.
        cpu_offload: Keep on the GPU only the part of the model that is at work.
        compile: Compile the denoising network: slower to load, faster to draw.
        lora: A .safetensors file, a folder with one, `org/name` or `org/name/file` on the Hub.
    """

    model_name: Annotated[str, Field(min_length=1)] = "tiny-digits"
    revision: str | None = None
    variant: str | None = None
    prompt: str | Annotated[list[str], Field(min_length=1)]
    negative_prompt: str | None = None
    num_images: PositiveInt = 1
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    height: PictureSide | None = None
    width: PictureSide | None = None
    scheduler: str | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    batch_size: PositiveInt | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    quantization: Literal["none", "int8", "int4"] = "none"
    attention_slicing: bool = False
    vae_tiling: bool = False
    cpu_offload: bool = False
    compile: bool = False
    lora: str | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @pydantic.model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        repeated = sorted(p for p, count in Counter(self.prompts).items() if count > 1)
        if repeated:
            raise ValueError(
                f"prompt: {repeated} are given more than once and would be drawn the same; "
                "to have more pictures of a prompt, raise num_images"
            )
        for name in ("revision", "variant"):
            if self.model_name == "tiny-digits" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: the tiny-digits that comes with this package has only one; "
                    f"leave {name} out, or give a model_name on the Hub"
                )
        no_guidance = self.guidance_scale is not None and self.guidance_scale <= 1
        if self.negative_prompt is not None and no_guidance:
            raise ValueError(
                f"negative_prompt: has no effect at guidance_scale={self.guidance_scale:g}, "
                "which means no guidance; raise it above 1, or leave negative_prompt out"
            )
        if self.quantization == "int4" and self.dtype in ("float32", "float16"):
            raise ValueError(
                f"dtype: quantization=int4 computes in bfloat16, not in {self.dtype}; "
                "use dtype=auto or bfloat16"
            )
        return self


class TextToImageExperiment(Experiment[TextToImageConfig]):
    """Draws `num_images` pictures of each prompt.

    Picture i of a prompt depends on the seed, the prompt and i only: not on the batch size, on
    the other prompts and their order, or on the machine, but for the rounding of its arithmetic.
    """

    @classmethod
    def hub_models(cls, config: TextToImageConfig) -> list[str]:
        """Return what `setup()` would download: the model, unless it's a folder or comes along."""
        if config.model_name == "tiny-digits" or Path(config.model_name).exists():
            return []
        return [f"{config.model_name}@{config.revision}" if config.revision else config.model_name]

    setup_fields: ClassVar[tuple[str, ...]] = (
        "model_name",
        "revision",
        "variant",
        "dtype",
        "device",
        "quantization",
        "cpu_offload",
        "compile",
        "lora",
    )

    preload: ClassVar[tuple[str, ...]] = (
        "ml_experiments.tasks.text_to_image.drawing",
        "ml_experiments.tasks.text_to_image.gallery",
    )

    _loaded: LoadedPipeline
    _load_seconds: float

    def setup(self) -> None:
        """Load the model, downloading what isn't in the cache."""
        started = time.perf_counter()
        config, run = self.config, current_run()
        run.progress(0, None, text=f"loading {config.model_name}")
        from ml_experiments.tasks.text_to_image.loading import load_pipeline

        self._loaded = load_pipeline(
            config.model_name,
            revision=config.revision,
            variant=config.variant,
            device=run.device if config.device == "auto" else config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            cpu_offload=config.cpu_offload,
            compile=config.compile,
            lora=config.lora,
        )
        self._load_seconds = time.perf_counter() - started

    def run(self) -> dict[str, Any]:
        """Draw the pictures; at the soft timeout, those that are drawn are kept and returned."""
        from ml_experiments.tasks.text_to_image.batches import (
            BatchSize,
            draw_in_batches,
            plan_pictures,
        )

        config, run = self.config, current_run()
        seed = run.seed if config.seed is None else config.seed
        drawer = self._prepare_drawer()
        requests = plan_pictures(config.prompts, config.num_images, seed)
        pixels = drawer.height * drawer.width
        size = BatchSize.choose(config.batch_size, self._loaded.device.type, pixels, len(requests))

        def draw(chosen: Sequence[PictureRequest]) -> Drawing:
            done, total = chosen[0].index, len(requests)
            return drawer.draw(
                chosen, lambda share: run.progress(done + share * len(chosen), total)
            )

        batch_seconds: list[float] = []
        started = time.perf_counter()
        with self._open_gallery(drawer, len(requests), seed) as gallery:
            try:
                for batch in draw_in_batches(draw, requests, size):
                    gallery.add(batch)
                    width, height = batch.drawing.pictures[0].size
                    batch_seconds.append(batch.seconds)
                    rate = len(batch.requests) / batch.seconds
                    done = batch.requests[-1].index + 1
                    run.log({"images_per_second": rate, "batch_seconds": batch.seconds}, step=done)
            except SoftTimeout:
                if not batch_seconds:
                    raise
                logger.warning("the time is nearly up: keeping the pictures drawn so far")
            gallery.wait()
            draw_seconds = time.perf_counter() - started
            contact_sheet = gallery.write_contact_sheet()
        return {
            "images": gallery.records,
            "contact_sheet": contact_sheet,
            "images_per_second": len(gallery.records) / draw_seconds,
            "latency_seconds_per_batch": _percentiles(batch_seconds),
            "batch_size": size.size,
            "batch_sizes_out_of_memory": size.too_large,
            "seed": seed,
            "height": height,
            "width": width,
            **self._describe_pipeline(drawer),
        }

    def _prepare_drawer(self) -> Drawer:
        from ml_experiments.tasks.text_to_image.drawing import DrawingSettings, prepare_drawer

        config = self.config
        names = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width")
        own = {name: getattr(config, name) for name in names}
        given = {name: value for name, value in own.items() if value is not None}
        return prepare_drawer(
            self._loaded,
            DrawingSettings(**{**self._loaded.files.recommended, **given}),
            scheduler=config.scheduler,
            attention_slicing=config.attention_slicing,
            vae_tiling=config.vae_tiling,
        )

    def _open_gallery(self, drawer: Drawer, count: int, seed: int) -> Gallery:
        from ml_experiments.tasks.text_to_image.contact_sheet import ContactSheet
        from ml_experiments.tasks.text_to_image.gallery import Gallery

        config, commit = self.config, self._loaded.files.commit
        texts = {
            "model": config.model_name,
            "revision": commit or "",
            "lora": config.lora or "",
            "negative_prompt": config.negative_prompt or "",
            "scheduler": drawer.scheduler,
            "num_inference_steps": str(drawer.effective("num_inference_steps")),
            "guidance_scale": str(drawer.effective("guidance_scale")),
        }
        title = (
            f"{config.model_name} · {drawer.scheduler} · {texts['num_inference_steps']} steps · "
            f"guidance {texts['guidance_scale']} · seed {seed}"
        )
        sheet = ContactSheet(title, row_length=config.num_images)
        used = {key: text for key, text in texts.items() if text}
        return Gallery(current_run().output_dir, count, sheet, used)

    def _describe_pipeline(self, drawer: Drawer) -> dict[str, Any]:
        """Return what the results say of the model, the machine and the settings in effect."""
        load_seconds, self._load_seconds = self._load_seconds, 0.0  # a warm run loads nothing
        loaded = self._loaded
        return {
            "load_seconds": load_seconds,
            "model_name": self.config.model_name,
            "model_revision": loaded.files.commit,
            "device": loaded.device.type,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "scheduler": drawer.scheduler,
            "num_inference_steps": drawer.effective("num_inference_steps"),
            "guidance_scale": drawer.effective("guidance_scale"),
            **({"quantized_layers": loaded.quantized_layers} if loaded.quantized_layers else {}),
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    import numpy as np

    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
