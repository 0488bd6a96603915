"""What is added to a model: LoRAs and textual inversions."""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.model.pipeline_class import NETWORKS, PipelineTraits
from ml_experiments.tasks.text_to_image.model.quiet import quiet_logging, shorten

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import (
        Lora,
        TextToImageConfig,
        TextualInversion,
    )

# each format of LoRAs has a converter, which fails in its own way
_FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, OSError, SafetensorError),
)
_MAX_CAUSE = 1000  # characters; some exceptions list every layer of a LoRA
_FITTING = "choose a LoRA that was trained on this model"
# the end of the key of a LoRA's first matrix, as diffusers names it
_FIRST_MATRIX = re.compile(r"(lora_A|lora_down|\.down)\.weight$")
# as peft's own save_pretrained() names weights
_PEFT_PREFIX = "base_model.model."
_PEFT_KEY = re.compile(re.escape(_PEFT_PREFIX) + r"(?P<layer>.+)\.lora_[AB]\.weight")
# the two tensors of an embedding for SDXL, with how the text encoder of each is named
_SDXL_PARTS = {"clip_l": "", "clip_g": "_2"}


@dataclass(frozen=True)
class Embedding:
    """A textual inversion.

    Attributes:
        word: Stands for it in prompts.
        vectors: For each text encoder, by what follows `text_encoder` in its name.
    """

    word: str
    vectors: Mapping[str, torch.Tensor]


def check_adapters(
    traits: PipelineTraits, loras: Sequence[Lora], inversions: Sequence[TextualInversion]
) -> None:
    """Check that a pipeline takes them, before it is downloaded.

    Raises:
        ConfigError: If it doesn't.
    """
    if loras and not hasattr(traits.pipeline_class, "load_lora_weights"):
        raise ConfigError(f"loras: diffusers can't load a LoRA into a {traits.name}")
    if inversions and not hasattr(traits.pipeline_class, "load_textual_inversion"):
        raise ConfigError(
            f"textual_inversions: diffusers can't load a textual inversion into a {traits.name}"
        )


def add_loras(pipeline: Any, loras: Sequence[Lora], files: Sequence[Path]) -> list[str]:
    """Add LoRAs to a pipeline; return their names. An empty one tells whether they fit the model.

    Raises:
        ConfigError: If one was made for another architecture.
    """
    names = [f"lora_{place}" for place in range(len(loras))]
    for name, lora, file in zip(names, loras, files, strict=True):
        _load_lora(pipeline, name, lora, file)
    return names


def load_loras(pipeline: Any, loras: Sequence[Lora], files: Sequence[Path], fuse: bool) -> None:
    """Add LoRAs to a pipeline with their weights; fused, they cost nothing when it draws.

    Raises:
        ConfigError: If one was made for another architecture.
    """
    names = add_loras(pipeline, loras, files)
    pipeline.set_adapters(names, adapter_weights=[lora.weight for lora in loras])
    if fuse:
        components = list(pipeline.get_list_adapters())
        pipeline.fuse_lora(components=components, adapter_names=names)
        pipeline.unload_lora_weights()


def _load_lora(pipeline: Any, name: str, lora: Lora, file: Path) -> None:
    of_pipeline = f"this {type(pipeline).__name__}"
    unet = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    try:
        # what has no place is counted below; peft and diffusers only warn of it
        with warnings.catch_warnings(), quiet_logging(logging.ERROR):
            warnings.simplefilter("ignore")
            source = _read_peft(pipeline, file) or file
            read = pipeline.lora_state_dict(source, **unet)
            pipeline.load_lora_weights(source, adapter_name=name)
    except _FAILURES as e:
        raise ConfigError(
            f"lora={lora.path!r} can't be loaded into {of_pipeline}: {shorten(e)}; {_FITTING}"
        ) from (e if len(str(e)) < _MAX_CAUSE else None)
    weights = read[0] if isinstance(read, tuple) else read
    count = sum(_FIRST_MATRIX.search(key) is not None for key in weights)
    placed = _count_layers(pipeline, name)
    if placed < max(count, 1):
        what = (
            f"{count - placed} of its {count} layers have no place in"
            if placed
            else "none of its layers belongs to"
        )
        raise ConfigError(f"lora={lora.path!r}: {what} {of_pipeline}; {_FITTING}")


def _read_peft(pipeline: Any, file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a LoRA that peft itself has saved, named as diffusers does.

    Empty for a LoRA in any other format.
    """
    with safe_open(file, framework="pt") as tensors:
        keys = list(tensors.keys())
        part = next(name for name in NETWORKS if getattr(pipeline, name, None) is not None)
        layers = {name for name, _ in getattr(pipeline, part).named_modules()}
        names = [_PEFT_KEY.fullmatch(key) for key in keys]
        if not all(name and name["layer"] in layers for name in names):
            return {}
        weights = {key: tensors.get_tensor(key) for key in keys}
    config_file, scale = file.with_name("adapter_config.json"), 1.0
    if config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        rank = config["r"]
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return {
        f"{part}.{key.removeprefix(_PEFT_PREFIX)}": weight * (scale if "lora_B" in key else 1)
        for key, weight in weights.items()
    }


def _count_layers(pipeline: Any, adapter: str) -> int:
    """Return how many layers of a pipeline an adapter changes."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    modules = [module for part in parts for module in part.modules()]
    return sum(adapter in getattr(module, "lora_A", ()) for module in modules)


def read_embedding(inversion: TextualInversion, file: Path) -> Embedding:
    """Read the file of a textual inversion.

    Raises:
        ConfigError: If it is none, or damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            weights = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise ConfigError(f"{_named(inversion)} can't be read: {shorten(e)}") from e
    is_sdxl = weights.keys() == _SDXL_PARTS.keys()
    if len(weights) != 1 and not is_sdxl:
        raise ConfigError(
            f"{_named(inversion)} holds {len(weights)} tensors, and a textual inversion holds one "
            "(two for SDXL: clip_l and clip_g); choose another file"
        )
    key = next(iter(weights))
    # files of AUTOMATIC1111 and CivitAI name no word
    own = file.stem if is_sdxl or key == "emb_params" else key
    vectors = {_SDXL_PARTS[k]: v for k, v in weights.items()} if is_sdxl else {"": weights[key]}
    return Embedding(inversion.token or own, vectors)


def try_embeddings(
    pipeline: Any, inversions: Sequence[TextualInversion], embeddings: Sequence[Embedding]
) -> None:
    """Check with an empty pipeline that its text encoders can learn the words of embeddings.

    Raises:
        ConfigError: If one was made for another text encoder, or its word is taken.
    """
    for inversion, embedding in zip(inversions, embeddings, strict=True):
        if problem := _misfit(pipeline, embedding):
            raise ConfigError(
                f"{_named(inversion)} can't be loaded into this {type(pipeline).__name__}: "
                f"{problem}; choose one that was trained on this model"
            )
        for _, tokenizer, vectors in _places(pipeline, embedding):
            # what diffusers calls the vectors of a word that has several
            names = [f"{embedding.word}_{i}" for i in range(1, len(torch.atleast_2d(vectors)))]
            taken = {embedding.word, *names} & tokenizer.get_vocab().keys()
            if taken:
                raise ConfigError(
                    f"{_named(inversion)}: {min(taken)!r} is a word of the tokenizer already, of "
                    "the model or of an inversion before this; set token to another word"
                )
            tokenizer.add_tokens([embedding.word, *names])


def _misfit(pipeline: Any, embedding: Embedding) -> str | None:
    encoders = set(_SDXL_PARTS.values())
    has = encoders if "StableDiffusionXL" in type(pipeline).__name__ else {""}
    if embedding.vectors.keys() != has:
        return f"it is {'' if len(has) == 1 else 'not '}made for the two text encoders of SDXL"
    for encoder, _, vectors in _places(pipeline, embedding):
        width = encoder.get_input_embeddings().weight.shape[-1]
        if vectors.shape[-1] != width:
            return f"its vectors have {vectors.shape[-1]} numbers, those of the model {width}"
    return None


def load_embeddings(pipeline: Any, embeddings: Sequence[Embedding]) -> None:
    """Teach a pipeline's text encoders the words that embeddings stand for."""
    for embedding in embeddings:
        for encoder, tokenizer, vectors in _places(pipeline, embedding):
            with quiet_logging():
                pipeline.load_textual_inversion(
                    vectors, token=embedding.word, text_encoder=encoder, tokenizer=tokenizer
                )


def _places(pipeline: Any, embedding: Embedding) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """Yield each text encoder with its tokenizer, and the vectors for it."""
    for suffix, vectors in embedding.vectors.items():
        yield (
            getattr(pipeline, f"text_encoder{suffix}"),
            getattr(pipeline, f"tokenizer{suffix}"),
            vectors,
        )


def check_words(embeddings: Sequence[Embedding], config: TextToImageConfig) -> None:
    """Check that the word of each textual inversion stands in a prompt.

    Raises:
        ConfigError: If one doesn't, and so has no effect.
    """
    text = "\n".join(f"{row.prompt}\n{row.negative_prompt}" for row in config.rows)
    for word in (embedding.word for embedding in embeddings):
        if word not in text:
            raise ConfigError(
                f"textual_inversions: {word!r} stands in no prompt and no negative_prompt, so it "
                f"has no effect; write {word} where you want it, or leave it out"
            )


def _named(inversion: TextualInversion) -> str:
    return f"textual_inversions: {inversion.path!r}"
