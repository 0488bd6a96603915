"""What is added to a model: LoRAs and textual inversions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.model.pipeline_class import PipelineTraits
from ml_experiments.tasks.text_to_image.model.quiet import quiet_imports

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import Lora, TextualInversion

_FITTING = "choose a LoRA that was trained on this model"


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


def load_loras(pipeline: Any, loras: Sequence[Lora], files: Sequence[Path], fuse: bool) -> None:
    """Add LoRAs to a pipeline; fused, they cost nothing when it draws.

    Raises:
        ConfigError: If one was made for another architecture.
    """
    names = [f"lora_{place}" for place in range(len(loras))]
    for name, lora, file in zip(names, loras, files, strict=True):
        _load_lora(pipeline, name, lora, file)
    pipeline.set_adapters(names, adapter_weights=[lora.weight for lora in loras])
    if fuse:
        components = list(pipeline.get_list_adapters())
        pipeline.fuse_lora(components=components, adapter_names=names)
        pipeline.unload_lora_weights()


def _load_lora(pipeline: Any, name: str, lora: Lora, file: Path) -> None:
    of_pipeline = f"this {type(pipeline).__name__}"
    try:
        # peft only warns of weights that it has no place for
        with warnings.catch_warnings(), quiet_imports():
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as e:
        raise ConfigError(
            f"lora={lora.path!r} can't be loaded into {of_pipeline}: {e}; {_FITTING}"
        ) from e
    if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
        raise ConfigError(
            f"lora={lora.path!r} has no weight that belongs to {of_pipeline}; {_FITTING}"
        )


def load_textual_inversions(
    pipeline: Any, inversions: Sequence[TextualInversion], files: Sequence[Path]
) -> None:
    """Teach a pipeline's text encoders the words that embeddings stand for.

    Raises:
        ConfigError: If one was made for another text encoder, or its word is taken.
    """
    for inversion, file in zip(inversions, files, strict=True):
        try:
            _load_inversion(pipeline, inversion, file)
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as e:
            raise ConfigError(
                f"textual_inversions: {inversion.path!r} can't be loaded into this "
                f"{type(pipeline).__name__}: {e}; choose one that was trained on this model"
            ) from e


def _load_inversion(pipeline: Any, inversion: TextualInversion, file: Path) -> None:
    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        weights = {key: tensors.get_tensor(key) for key in keys}
    if {"clip_l", "clip_g"} <= keys:  # SDXL has two text encoders
        token = inversion.token or file.stem
        parts = {
            "clip_l": ("text_encoder", "tokenizer"),
            "clip_g": ("text_encoder_2", "tokenizer_2"),
        }
        for key, (encoder, tokenizer) in parts.items():
            pipeline.load_textual_inversion(
                weights[key],
                token=token,
                text_encoder=getattr(pipeline, encoder),
                tokenizer=getattr(pipeline, tokenizer),
            )
        return
    if "emb_params" in keys:  # as AUTOMATIC1111 and CivitAI name it
        token = inversion.token or file.stem
        pipeline.load_textual_inversion(weights["emb_params"], token=token)
        return
    pipeline.load_textual_inversion(file.parent, weight_name=file.name, token=inversion.token)
