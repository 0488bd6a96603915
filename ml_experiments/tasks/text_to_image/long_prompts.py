"""Prompts that are longer than a model's tokenizer reads: what is left out, or all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.model.pipeline_class import PipelineTraits
from ml_experiments.tasks.text_to_image.model.quiet import quiet_logging

# with the wrapper of compel that encodes for them; each family's own class and its PAG variant
_WRAPPERS = {
    "StableDiffusionPipeline": "CompelForSD",
    "StableDiffusionPAGPipeline": "CompelForSD",
    "StableDiffusionXLPipeline": "CompelForSDXL",
    "StableDiffusionXLPAGPipeline": "CompelForSDXL",
}
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "prior_tokenizer")


def check_long_prompts(traits: PipelineTraits) -> None:
    """Check that prompts of any length can be encoded for a pipeline.

    Raises:
        ConfigError: If they can't, or compel isn't installed.
    """
    if traits.name not in _WRAPPERS:
        raise ConfigError(
            f"long_prompt=true: compel encodes no long prompts for a {traits.name}; leave "
            f"long_prompt out; it works with {', '.join(sorted(_WRAPPERS))}"
        )
    _import_compel()


def _import_compel() -> Any:
    try:
        with quiet_logging():
            import compel
    except ImportError as e:
        raise ConfigError("long_prompt=true needs the package compel: pip install compel") from e
    return compel


class PromptEncoder:
    """Encodes a prompt of any length in pieces, with compel's syntax for weights: (word)1.3."""

    def __init__(self, pipeline: Any) -> None:
        compel = _import_compel()
        wrapper = getattr(compel, _WRAPPERS[type(pipeline).__name__])
        self._encode = wrapper(
            pipeline,
            textual_inversion_manager=compel.DiffusersTextualInversionManager(pipeline),
            device=pipeline._execution_device,
        )
        self._takes_pooled = wrapper is compel.CompelForSDXL

    def encode(self, prompt: str, negative_prompt: str | None) -> dict[str, Any]:
        """Return what the pipeline takes instead of a prompt."""
        with torch.no_grad():
            # always a negative one: both must have the same number of pieces
            encoded = self._encode([prompt], negative_prompt=[negative_prompt or ""])
        arguments = {
            "prompt_embeds": encoded.embeds,
            "negative_prompt_embeds": encoded.negative_embeds,
        }
        if self._takes_pooled:
            arguments["pooled_prompt_embeds"] = encoded.pooled_embeds
            arguments["negative_pooled_prompt_embeds"] = encoded.negative_pooled_embeds
        return arguments


def unread_part(pipeline: Any, parameters: Mapping[str, Any], prompt: str) -> str:
    """Return the end of a prompt that no text encoder of a pipeline reads; mostly empty."""
    parts = [
        _beyond_limit(tokenizer, parameters, prompt)
        for tokenizer in (getattr(pipeline, name, None) for name in _TOKENIZERS)
        if tokenizer is not None
    ]
    return min(parts, key=len, default="")


def _beyond_limit(tokenizer: Any, parameters: Mapping[str, Any], prompt: str) -> str:
    limit = tokenizer.model_max_length
    max_length = parameters.get("max_sequence_length")
    if max_length is not None and isinstance(max_length.default, int):
        # CLIP tokenizers have a limit of their own, the others get that of the pipeline
        limit = limit if limit < 100 else max_length.default
    if len(prompt) < limit:  # a token has at least one character
        return ""
    ids: Sequence[int] = tokenizer(prompt, truncation=False, verbose=False).input_ids
    return str(tokenizer.decode(ids[limit - 1 : -1])).strip() if len(ids) > limit else ""
