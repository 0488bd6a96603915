"""The config of `TextToImageExperiment`, checked before anything is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, PositiveInt

from ml_experiments.errors import suggest
from ml_experiments.experiment.base import ExperimentConfig
from ml_experiments.tasks.text_to_image.named_paths import TINY_DIGITS, absolute_path, exists
from ml_experiments.tasks.text_to_image.pictures.file_names import check_template
from ml_experiments.tasks.text_to_image.prompts_file import read_rows

PictureSide = Annotated[int, Field(ge=8, multiple_of=8)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1)]

_MAX_IMAGES = 1_000_000  # which fit in memory with their names and metadata
_MAX_EXIF_BYTES = 60_000  # of 65,533 in a jpeg file


class Lora(ExperimentConfig):
    """A LoRA and how strongly it is applied.

    Attributes:
        path: A .safetensors file, a folder with one, or `org/name` or `org/name/file` on the Hub.
        weight: 1 applies it as it was trained.
    """

    path: Name
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class TextualInversion(ExperimentConfig):
    """A learned embedding, and the word in a prompt that stands for it.

    Attributes:
        path: A .safetensors file, a folder with one, or `org/name` or `org/name/file` on the Hub.
        token: The word; by default the one that the file names.
    """

    path: Name
    token: str | None = None


class PromptRow(ExperimentConfig):
    """A prompt with settings of its own; None takes what the config says.

    Attributes:
        seed: Of the first picture of this prompt; the next ones take seed + 1, seed + 2, and so on.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: Seed | None = None
    num_images: PositiveInt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Scale | None = None
    true_cfg_scale: Scale | None = None
    height: PictureSide | None = None
    width: PictureSide | None = None
    scheduler: str | None = None


class TextToImageConfig(ExperimentConfig):
    """What to draw and how; None leaves the choice to the model.

    Attributes:
        model_name: `tiny-digits` (comes with this package), a name on the Hugging Face Hub,
            a folder written by `pipeline.save_pretrained()`, or a checkpoint file
            (.safetensors, .gguf, .ckpt).
        base_model: For a checkpoint file: the model, as a folder or a name on the Hub, that has
            the configs and what the file lacks. By default diffusers recognises it.
        allow_pickle: Whether a .ckpt file may be loaded, which can execute what it likes.
        revision: Branch, tag or commit of the model on the Hub.
        variant: Which of the model's sets of weights, such as `fp16`. By default the plain one,
            or the only one that there is.
        prompt: One, or several different ones, each a string or a `PromptRow`.
        prompts_file: Instead of `prompt`: a .txt file with a prompt a line, or a .csv, .tsv or
            .jsonl file with the fields of `PromptRow`.
        negative_prompt: What pictures should not show; works through guidance.
        num_images: Pictures of each prompt.
        true_cfg_scale: Guidance by a negative prompt, for models that have both kinds
            (Flux, Qwen-Image).
        height: In pixels, as is the width.
        scheduler: Name of a diffusers scheduler, such as `EulerDiscreteScheduler` or `euler`.
        seed: By default the run's seed.
        long_prompt: Encode prompts of any length, in pieces, with (weights)1.3 of words, by the
            library compel; else what the model doesn't read is named in the results.
        batch_size: Pictures drawn together; `auto` finds out what fits in memory.
        dtype: Number format; `auto` is bfloat16 or float16 on a GPU, float32 on a CPU.
        device: `auto` takes a GPU when there is one.
        quantization: Format of the weights of the denoising network's linear layers.
        attention_slicing: Less memory for attention, more time.
        attention_backend: Implementation of attention, as diffusers names it: `native`, `flash`.
        vae_tiling: Less memory for decoding large pictures, in tiles.
        cpu_offload: Keep on the GPU only the part of the model that is at work.
        compile: Compile the denoising network: slower to load, faster to draw.
        first_block_cache: Skip the other blocks of a transformer in steps in which its first
            block changes by less than this share (0.05 to 0.2): faster, slightly different.
        channels_last: Memory layout in which convolutions are faster on some devices.
        lora: The path of a LoRA; short for `loras` with a single one of weight 1.
        loras: LoRAs, applied together.
        fuse_loras: Add the LoRAs to the model's weights, which then draws at full speed.
        textual_inversions: Learned embeddings for words of the prompts.
        image_format: png keeps every pixel; jpeg and webp are smaller.
        image_quality: Of jpeg and webp: 1 to 100, 95 by default; 100 makes webp lossless.
        file_name: A template, such as `{index}-{prompt}`; see `file_names.py` for its fields.
    """

    model_name: Name = TINY_DIGITS
    base_model: str | None = None
    allow_pickle: bool = False
    revision: str | None = None
    variant: str | None = None
    prompt: str | Annotated[list[str | PromptRow], Field(min_length=1)]
    prompts_file: Path | None = None
    negative_prompt: str | None = None
    num_images: PositiveInt = 1
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Scale | None = None
    true_cfg_scale: Scale | None = None
    height: PictureSide | None = None
    width: PictureSide | None = None
    scheduler: str | None = None
    seed: Seed | None = None
    long_prompt: bool = False
    batch_size: PositiveInt | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    quantization: Literal["none", "int8", "int4", "fp8"] = "none"
    attention_slicing: bool = False
    attention_backend: str | None = None
    vae_tiling: bool = False
    cpu_offload: bool = False
    compile: bool = False
    first_block_cache: Annotated[float, Field(gt=0, lt=1)] | None = None
    channels_last: bool = False
    lora: str | None = None
    loras: list[Lora] = []
    fuse_loras: bool = True
    textual_inversions: list[TextualInversion] = []
    image_format: Literal["png", "jpeg", "webp"] = "png"
    image_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    file_name: str = "{index}-{prompt}"

    @property
    def rows(self) -> Sequence[PromptRow]:
        """The prompts, each with the settings that hold for it."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        own_only = {"prompt", "seed"}
        common = {name: getattr(self, name) for name in PromptRow.model_fields.keys() - own_only}
        given = [
            {"prompt": p} if isinstance(p, str) else p.model_dump(exclude_none=True)
            for p in prompts
        ]
        return [PromptRow.model_construct(**{"seed": None, **common, **own}) for own in given]

    @pydantic.model_validator(mode="before")
    @classmethod
    def _shorthands(cls, data: Any) -> Any:
        """Replace `prompts_file` by what it holds, which travels with the config, and `lora`."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        file, lora = data.pop("prompts_file", None), data.pop("lora", None)
        if file is not None:
            if data.get("prompt") is not None:
                raise ValueError("prompts_file: give either prompt or prompts_file, not both")
            data["prompt"] = read_rows(Path(file), PromptRow)
        if isinstance(data.get("prompt"), dict):
            data["prompt"] = [data["prompt"]]
        if lora is not None:
            if data.get("loras"):
                raise ValueError("lora: give either lora or loras, not both")
            if not isinstance(lora, str) or not lora:
                raise ValueError(f"lora: {lora!r} is no path; give one, or leave lora out")
            data["loras"] = [{"path": lora}]
        return data

    @pydantic.model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        rows = self.rows
        drawn = Counter(
            (row.prompt, *(value for name, value in vars(row).items() if name != "num_images"))
            for row in rows
        )
        if len(drawn) < len(rows):
            repeated = sorted({prompt for (prompt, *_), count in drawn.items() if count > 1})
            raise ValueError(
                f"prompt: {repeated} are given more than once and would be drawn the same; "
                "to have more pictures of a prompt, raise num_images"
            )
        if (count := sum(row.num_images or 1 for row in rows)) > _MAX_IMAGES:
            raise ValueError(
                f"num_images: these are {count:,} pictures, and a run draws at most "
                f"{_MAX_IMAGES:,}; start several runs, each with a seed of its own"
            )
        if self.model_name == TINY_DIGITS:
            self._check_tiny_digits(rows)
        elif (
            "/" not in self.model_name
            and not exists(absolute_path(self.model_name))
            and (meant := suggest(self.model_name, [TINY_DIGITS]))
        ):
            raise ValueError(f"model_name: there is no {self.model_name!r}{meant}")
        if self.quantization == "int4" and self.dtype in ("float32", "float16"):
            raise ValueError(
                f"dtype: quantization=int4 computes in bfloat16, not in {self.dtype}; "
                "use dtype=auto or bfloat16"
            )
        if self.image_quality is not None and self.image_format == "png":
            raise ValueError(
                "image_quality: png always keeps every pixel; set image_format to jpeg or webp, "
                "or leave image_quality out"
            )
        if self.image_format == "jpeg" and any(map(_exceeds_exif, rows)):
            raise ValueError(
                "image_format: the metadata of a jpeg file can't hold so long a prompt; use png or "
                "webp"
            )
        if not self.fuse_loras and not self.loras:
            raise ValueError("fuse_loras: there is no LoRA; give loras, or leave fuse_loras out")
        check_template(self.file_name)
        return self

    def _check_tiny_digits(self, rows: Sequence[PromptRow]) -> None:
        for name in ("revision", "variant", "base_model"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: the tiny-digits that comes with this package has only one; "
                    f"leave {name} out, or give a model_name on the Hub"
                )
        for row in rows:
            scale = row.guidance_scale
            if row.negative_prompt is not None and scale is not None and scale <= 1:
                raise ValueError(
                    f"negative_prompt: has no effect at guidance_scale={scale:g}, "
                    "which means no guidance; raise it above 1, or leave negative_prompt out"
                )


def _exceeds_exif(row: PromptRow) -> bool:
    text = f"{row.prompt}{row.negative_prompt}"
    # once as JSON and once in UTF-16, and some more for the settings
    return len(json.dumps(text)) + len(text.encode("utf-16")) > _MAX_EXIF_BYTES
